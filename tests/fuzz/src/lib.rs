//! What fuzz targets check the product's output with: nothing of it is the product's own code.

pub mod erofs;
