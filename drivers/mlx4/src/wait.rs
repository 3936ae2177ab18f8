//! Waiting with a limit.

use core::future::Future;
use core::pin::pin;

use futures_util::future::{Either, select};
use hal::{Duration, Platform};

/// Waits for `event`, but at most for `span`; says whether it came.
pub(crate) async fn at_most<P: Platform>(
    platform: &P,
    event: impl Future<Output = ()>,
    span: Duration,
) -> bool {
    match select(pin!(event), pin!(platform.sleep(span))).await {
        Either::Left(_) => true,
        Either::Right(_) => false,
    }
}
