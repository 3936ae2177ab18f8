//! The interface to a disk.

use core::future::Future;

use crate::DiskError;

/// A disk with a volatile write cache.
///
/// Several requests may be in flight at a time. Offsets and lengths are multiples of 1,024 bytes.
///
/// Later reads return the bytes of a completed write. They survive a loss of power only if a flush
/// that began after the write's completion has completed; until then any part of it may be lost, in
/// any order.
pub trait Disk: Send + Sync {
    /// Fills `into` with the bytes from `offset` on.
    fn read(
        &self,
        offset: u64,
        into: &mut [u8],
    ) -> impl Future<Output = Result<(), DiskError>> + Send;

    /// Stores `bytes` from `offset` on.
    fn write(
        &self,
        offset: u64,
        bytes: &[u8],
    ) -> impl Future<Output = Result<(), DiskError>> + Send;

    /// Stores `bytes` from `offset` on, durably. Earlier writes need not be durable then.
    fn write_through(
        &self,
        offset: u64,
        bytes: &[u8],
    ) -> impl Future<Output = Result<(), DiskError>> + Send {
        async move {
            self.write(offset, bytes).await?;
            self.flush().await
        }
    }

    /// Makes all completed writes durable.
    fn flush(&self) -> impl Future<Output = Result<(), DiskError>> + Send;
}
