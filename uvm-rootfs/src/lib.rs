//! Packs the read-only root file system of the utility VM.
