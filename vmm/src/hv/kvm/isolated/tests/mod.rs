//! Recorded launches.
