//! Opening a page path.

use alloc::sync::Arc;
use core::sync::atomic::Ordering;

use hal::{Duration, Platform};
use verbs::{Device, Lkey, PagesConfig};

use super::{PageLink, PagePath, PageState};
use crate::error::ConnectStep;
use crate::handshake::PAGE_LANES;
use crate::peers::ConnectState;
use crate::{Error, Fit, PeerId};

/// The interval at which a task that waits for a connection looks again.
const LOOK: Duration = Duration::from_millis(5);

impl<D: Device, P: Platform> Fit<D, P> {
    /// Opens a page path from `core` to a peer that is connected, for lines in the region under
    /// `lkey`, which is registered in the peer's [domain](Fit::domain). The peer must
    /// [accept](crate::Config::page_paths) such paths. [`control`](Fit::control) must run.
    ///
    /// # Errors
    ///
    /// [`Error::NotConnected`], [`Error::PeerLost`], [`Error::Refused`] when the peer accepts none,
    /// [`Error::NoConnection`] when [`Config::connect_timeout`](crate::Config::connect_timeout) is
    /// over, [`Error::Device`].
    ///
    /// # Panics
    ///
    /// When there is no such core.
    pub async fn open_pages(
        &self,
        core: u16,
        peer: PeerId,
        lkey: Lkey,
    ) -> Result<PagePath<D::Pages>, Error> {
        let inner = &self.0;
        assert!(
            core < inner.config.cores,
            "core {core} of {}",
            inner.config.cores
        );
        let line = inner.peers.lock().get(peer).copied();
        let Some(line) = line.filter(|line| line.standing == ConnectState::Up) else {
            return Err(Error::NotConnected(peer.0));
        };
        let config = PagesConfig {
            domain: inner.domain(peer),
            port: inner.config.port,
            depth: inner.config.page_depth.into(),
            lkey,
            vector: inner.config.first_vector + core,
        };
        let (queue, qpn) = inner.device.create_pages(&config).await?;
        let number = inner.next_page_lane.fetch_add(1, Ordering::Relaxed);
        let lane = PAGE_LANES | number;
        let link = Arc::new(PageLink::new(peer, line.name, lane, qpn, None));
        inner.pages.lock().push(link.clone());
        let parking = inner.parking.clone();
        let path = PagePath::new(queue, link.clone(), parking, inner.config.timeout);
        self.wait_until_up(&link).await.map(|()| path)
    }

    async fn wait_until_up(&self, link: &PageLink) -> Result<(), Error> {
        let (platform, timeout) = (&self.0.platform, self.0.config.connect_timeout);
        let (began, peer) = (platform.now(), link.name);
        loop {
            let waited = platform.now().since(began);
            match link.state() {
                PageState::Up => return Ok(()),
                PageState::Wanted if waited >= timeout => {
                    let step = ConnectStep::Answer;
                    return Err(Error::NoConnection { peer, waited, step });
                }
                PageState::Wanted => platform.sleep(LOOK).await,
                PageState::Failing | PageState::Dead => {
                    return Err(match link.refusal() {
                        Some(reason) => Error::Refused { peer, reason },
                        None => Error::PeerLost {
                            peer,
                            cause: link.cause(),
                            waiting: None,
                        },
                    });
                }
            }
        }
    }
}
