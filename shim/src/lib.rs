//! containerd-shim-uvm-v2: one utility VM per pod.
