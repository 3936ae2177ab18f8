//! Memory: frames, the kernel's page tables, programs' page tables, memory that devices share.

#[cfg(any(test, target_os = "none"))]
pub(crate) mod asid;
pub mod frame_bitmap;
pub mod page_entry;
#[cfg(any(test, target_os = "none"))]
pub(crate) mod table_pool;
#[cfg(any(test, target_os = "none"))]
pub(crate) mod user_tables;

// Modules that exist on the machine only, not on the host.
#[cfg(target_os = "none")]
pub(crate) mod address_space;
#[cfg(target_os = "none")]
pub mod dma;
#[cfg(target_os = "none")]
pub mod frames;
#[cfg(target_os = "none")]
pub(crate) mod heap;
#[cfg(target_os = "none")]
pub(crate) mod layout;
#[cfg(target_os = "none")]
pub(crate) mod page_table;
#[cfg(target_os = "none")]
pub(crate) mod paging;
#[cfg(target_os = "none")]
pub(crate) mod window;
