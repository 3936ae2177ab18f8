//! Serves modelled ConnectX-3s to QEMU over vfio-user.

fn main() {}
