//! What outlives the decision: bytes both ways, or requests. It holds what it needs, and nothing that
//! was only needed to get there.

use std::net::SocketAddr;

use tokio::net::TcpStream;
use tokio::sync::watch;

use super::{Site, cut};
use crate::account::{ConnectionAccount, Flag};
use crate::act::carrier::Carried;
use crate::act::http::{self, HttpContext};
use crate::act::relay::{self, RelayEnd, RelayLimits};
use crate::decide::route::Destination;
use crate::drain::Drain;
use crate::origin::Origin;
use crate::sniff::Hello;
use crate::sniff::prefixed::Prefixed;

/// A connection on its way.
pub(super) enum Lasting {
    /// Bytes are relayed.
    Relay(Box<Relaying>),
    /// Requests are judged one by one.
    Http(Box<Requests>),
}

impl Lasting {
    /// Until its end, or the end of `drain`. Accounts for it.
    pub(super) async fn last(self, drain: &Drain) {
        match self {
            Self::Relay(relaying) => Box::pin(relaying.run(drain)).await,
            Self::Http(requests) => tokio::select! {
                biased;
                () = Box::pin(requests.run()) => {}
                () = drain.over() => {}
            },
        }
    }
}

/// A client whose requests are to be judged.
pub(super) struct Requests {
    pub(super) client: Prefixed<TcpStream>,
    pub(super) origin: Origin,
    pub(super) context: HttpContext,
}

/// What an established connection is.
pub(super) struct Established {
    pub(super) origin: Origin,
    /// What it started with, where anybody looked.
    pub(super) hello: Option<Hello>,
    /// Where it was decided to lead.
    pub(super) destination: Destination,
    /// Where it leads.
    pub(super) peer: SocketAddr,
}

/// Two ends to relay between.
pub(super) struct Relaying {
    pub(super) client: Prefixed<TcpStream>,
    pub(super) carried: Carried,
    pub(super) established: Established,
    pub(super) site: Site,
    /// Subscribed to before the connection was judged.
    pub(super) changes: watch::Receiver<u64>,
    pub(super) account: ConnectionAccount,
}

impl Relaying {
    /// Not an `async fn`, which would keep the box beside what it takes out of it.
    fn run(self: Box<Self>, drain: &Drain) -> impl Future<Output = ()> {
        let Self { client, carried, established, site, changes, mut account } = *self;
        let Carried { stream, held, left, .. } = carried;
        async move {
            let limits = RelayLimits::of(&established.destination.traffic.limits);
            let mut withdrawn = None;
            let relayed = {
                // Boxed: on its own, each finds a place that fits.
                let mut cut = Box::pin(async {
                    tokio::select! {
                        why = cut::withdrawn(&site, &established, changes) => withdrawn = Some(why),
                        () = drain.over() => {}
                    }
                });
                relay::relay(client, stream, limits, cut.as_mut()).await
            };
            match relayed.end {
                RelayEnd::Cut => match withdrawn {
                    Some(why) => {
                        account.terminated(Some(Flag::UH), format!("policy_removed{{{why}}}"));
                    }
                    None => account.terminated(None, "drain_timeout"),
                },
                RelayEnd::Idle => account.terminated(None, "idle_timeout"),
                RelayEnd::TooLong => account.terminated(Some(Flag::DT), "max_duration_timeout"),
                _ => {}
            }
            if let Some(why) = left.and_then(|left| left.refused()) {
                account.refused_beyond(why);
            }
            account.close(relayed.bytes_received, relayed.bytes_sent);
            drop(held);
        }
    }
}

impl Requests {
    fn run(self: Box<Self>) -> impl Future<Output = ()> + Send {
        let Self { client, origin, context } = *self;
        http::serve(client, origin, context)
    }
}
