//! Deterministic erofs images and dm-verity hash trees.
