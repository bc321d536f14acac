//! Starts a uvm-vmm process and speaks its control protocol.
