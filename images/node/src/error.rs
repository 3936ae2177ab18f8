//! Errors that keep a component from starting or going on.

use alloc::string::String;

/// An error that ends a component; its log names it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is no card in the machine.
    #[error("no ConnectX-3 (PCI 15b3:1003 or 15b3:1007) in this machine")]
    NoCard,
    /// The card did not come up, or failed later.
    #[error("the HCA: {0}")]
    Card(#[from] mlx4::Error),
    /// The card refused something of the role's.
    #[error("the HCA: {0}")]
    Device(#[from] verbs::Error),
    /// FIT could not start, or a peer is missing or lost.
    #[error(transparent)]
    Fit(#[from] fit::Error),
    /// The kernel command line or a device of the machine is not right.
    #[error(transparent)]
    Machine(#[from] libos::Error),
    /// The command line lacks an option that every component needs.
    #[error("the command line has no {0}=")]
    NoOption(&'static str),
    /// The option `key=` makes no sense; what it is stays out of the log.
    #[error("key=: {0}")]
    Key(fit::BadKey),
    /// The role's own trouble.
    #[error("{0}")]
    Role(String),
}
