//! What the image builder, the VMM and the boot stub agree on, byte for byte.
