//! Builds the IGVM image of a utility VM and its measurement sidecar.
