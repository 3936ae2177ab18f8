//! Work that is due on a connection at the end of a round, as bits: one look tells that there is
//! none. A part of a connection that finds such work returns the bits.

/// Something may wait to be posted.
pub(crate) const BACKLOG: u8 = 1;
/// Something was posted that the device was not told of.
pub(crate) const DOORBELL: u8 = 2;
/// Something has arrived that the servers were not told of.
pub(crate) const ARRIVED: u8 = 4;
