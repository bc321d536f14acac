//! The measured firmware of a utility VM.
