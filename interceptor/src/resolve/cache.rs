//! The daemon's memory of answers: how long one stands, what stands in for a failing resolver, and
//! that one name is asked for once at a time. Knows nothing of DNS messages.

use std::collections::HashMap;
use std::net::IpAddr;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

use super::ResolveError;
use crate::decide::host::HostName;

/// Shortest life of an answer (T-41).
const TTL_FLOOR: Duration = Duration::from_secs(1);
/// Longest life of "no address", and longest pause before a failing name is asked for again.
const RETRY_AFTER: Duration = Duration::from_secs(5);
/// How long a lookup that could use an older answer waits for a new one (RFC 8767 section 5 has
/// 1.8 s; a connect is waiting here).
const STALE_WAIT: Duration = Duration::from_secs(1);
/// Most addresses kept of one answer (T-41).
pub(super) const MAX_ADDRESSES: usize = 64;
/// Most names remembered (T-53).
const MAX_NAMES: usize = 4096;
/// Names forgotten at once when there are too many.
const EVICTED_AT_ONCE: usize = MAX_NAMES / 16;

/// What asking gave: addresses (none: the name has none) and how long they hold, or why nobody
/// answered.
pub(super) type Asked = Result<Answer, Arc<str>>;

/// A successful answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Answer {
    /// Both families; empty when the name has no address or does not exist.
    pub(super) addresses: Vec<IpAddr>,
    /// How long it holds, as the server says.
    pub(super) ttl: Duration,
}

type Lookup = Result<Arc<[IpAddr]>, ResolveError>;
type Flight = Shared<BoxFuture<'static, Lookup>>;

/// Answers by name.
#[derive(Debug)]
pub(super) struct Cache {
    slots: Mutex<HashMap<HostName, Slot>>,
    holding: Mutex<Holding>,
    /// Counts answers that were news.
    news: watch::Sender<u64>,
}

/// How long answers hold, as settings have it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Holding {
    /// See [`super::ResolverConfig::stale_for`].
    pub(super) stale_for: Option<Duration>,
    /// See [`super::ResolverConfig::refresh`].
    pub(super) refresh: Duration,
}

impl Holding {
    fn retry_after(&self) -> Duration {
        self.refresh.clamp(TTL_FLOOR, RETRY_AFTER)
    }
}

/// What is known of one name.
#[derive(Debug)]
struct Slot {
    /// The last answer with addresses.
    good: Option<Good>,
    /// What is said instead of asking, until when: after an empty answer or a failure.
    refused: Option<(ResolveError, Instant)>,
    /// The question under way.
    flight: Option<Flight>,
    /// When it was last asked for here.
    used: Instant,
}

#[derive(Debug)]
struct Good {
    addresses: Arc<[IpAddr]>,
    fresh_until: Instant,
}

impl Cache {
    /// A cache that serves the last good answer for `stale_for` while asking fails (`None`: for
    /// ever) and asks again after `refresh`, at the latest after five seconds.
    pub(super) fn new(stale_for: Option<Duration>, refresh: Duration) -> Self {
        Self {
            slots: Mutex::default(),
            holding: Mutex::new(Holding { stale_for, refresh }),
            news: watch::Sender::new(0),
        }
    }

    /// How long answers hold.
    pub(super) fn holding(&self) -> Holding {
        *self.holding.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes that, for what is known already, too.
    pub(super) fn hold(&self, holding: Holding) {
        *self.holding.lock().unwrap_or_else(PoisonError::into_inner) = holding;
    }

    /// The addresses of `host`: remembered, or by way of `ask`.
    pub(super) async fn get<F>(self: &Arc<Self>, host: &HostName, ask: impl FnOnce() -> F) -> Lookup
    where
        F: Future<Output = Asked> + Send + 'static,
    {
        let now = Instant::now();
        let (flight, stale) = {
            let mut slots = self.slots();
            if !slots.contains_key(host) {
                self.make_room(&mut slots, now);
            }
            let slot = slots.entry(host.clone()).or_insert_with(|| Slot::empty(now));
            slot.used = now;
            if let Some(known) = slot.known(now, self.holding().stale_for) {
                return known;
            }
            let flight = match &slot.flight {
                Some(flight) => flight.clone(),
                None => slot.flight.insert(self.take_off(host, ask())).clone(),
            };
            (flight, slot.stale(now, self.holding().stale_for))
        };
        match stale {
            None => flight.await,
            // A slow resolver must not delay what an older answer can serve.
            Some(older) => timeout(STALE_WAIT, flight).await.unwrap_or(Ok(older)),
        }
    }

    /// What may be said now, of every name that has addresses: without asking, or, while a resolver is
    /// asked that may be silent, what would stand in for its answer (T-42).
    pub(super) fn known(&self) -> Vec<(HostName, Arc<[IpAddr]>)> {
        let (now, stale_for) = (Instant::now(), self.holding().stale_for);
        let slots = self.slots();
        let said = |slot: &Slot| match slot.known(now, stale_for) {
            Some(known) => known.ok(),
            None => slot.flight.as_ref().and_then(|_| slot.stale(now, stale_for)),
        };
        slots.iter().filter_map(|(host, slot)| Some((host.clone(), said(slot)?))).collect()
    }

    /// Whether `host` would be answered from memory now, if only with a refusal.
    pub(super) fn remembers(&self, host: &HostName) -> bool {
        let stale_for = self.holding().stale_for;
        let slots = self.slots();
        slots.get(host).is_some_and(|slot| slot.known(Instant::now(), stale_for).is_some())
    }

    /// Changes with every answer that differs from the one before.
    pub(super) fn news(&self) -> watch::Receiver<u64> {
        self.news.subscribe()
    }

    /// Starts a question. It runs by itself, so that a caller that gives up neither stops it for
    /// others nor loses its answer.
    fn take_off<F>(self: &Arc<Self>, host: &HostName, ask: F) -> Flight
    where
        F: Future<Output = Asked> + Send + 'static,
    {
        let cache = Arc::clone(self);
        let host = host.clone();
        let flight = async move {
            let asked = AssertUnwindSafe(ask).catch_unwind().await;
            cache.land(&host, asked.unwrap_or_else(|_| Err("the resolver panicked".into())))
        };
        let flight = flight.boxed().shared();
        tokio::spawn(flight.clone());
        flight
    }

    /// Records what a question gave, and says what that means for those who wait.
    fn land(&self, host: &HostName, asked: Asked) -> Lookup {
        let now = Instant::now();
        let mut slots = self.slots();
        let mut evicted = Slot::empty(now);
        let slot = slots.get_mut(host).unwrap_or(&mut evicted);
        slot.flight = None;
        match asked {
            Ok(Answer { addresses, .. }) if addresses.is_empty() => {
                // A successful empty answer clears the addresses (RES-7).
                if slot.good.take().is_some() {
                    self.news.send_modify(|count| *count += 1);
                }
                let error = ResolveError::NoAddress(host.clone());
                slot.refused = Some((error.clone(), now + RETRY_AFTER));
                Err(error)
            }
            Ok(Answer { mut addresses, ttl }) => {
                addresses.truncate(MAX_ADDRESSES);
                let addresses: Arc<[IpAddr]> = addresses.into();
                if slot.good.as_ref().is_none_or(|good| good.addresses != addresses) {
                    self.news.send_modify(|count| *count += 1);
                }
                slot.good = Some(Good {
                    addresses: Arc::clone(&addresses),
                    fresh_until: now + ttl.max(TTL_FLOOR),
                });
                slot.refused = None;
                Ok(addresses)
            }
            Err(why) => {
                let error = ResolveError::Failed { host: host.clone(), why };
                slot.refused = Some((error.clone(), now + self.holding().retry_after()));
                slot.stale(now, self.holding().stale_for).ok_or(error)
            }
        }
    }

    /// Makes room for more names: those of which nothing useful is known go first, then the
    /// sixteenth that nobody asked for the longest (many at once: a flood must not cost a walk a
    /// name). Names in use thus outlive a flood (T-41).
    fn make_room(&self, slots: &mut HashMap<HostName, Slot>, now: Instant) {
        if slots.len() < MAX_NAMES {
            return;
        }
        let stale_for = self.holding().stale_for;
        slots.retain(|_, slot| slot.is_useful(now, stale_for));
        if slots.len() > MAX_NAMES - EVICTED_AT_ONCE {
            let mut used = slots.values().map(|slot| slot.used).collect::<Vec<_>>();
            let (_, &mut cutoff, _) = used.select_nth_unstable(EVICTED_AT_ONCE);
            slots.retain(|_, slot| slot.used > cutoff);
        }
    }

    fn slots(&self) -> MutexGuard<'_, HashMap<HostName, Slot>> {
        // Nothing can panic between two writes that belong together.
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Slot {
    fn empty(now: Instant) -> Self {
        Self { good: None, refused: None, flight: None, used: now }
    }

    /// What may be said without asking.
    fn known(&self, now: Instant, stale_for: Option<Duration>) -> Option<Lookup> {
        if let Some(good) = self.good.as_ref().filter(|good| now < good.fresh_until) {
            return Some(Ok(Arc::clone(&good.addresses)));
        }
        let (error, _) = self.refused.as_ref().filter(|(_, until)| now < *until)?;
        Some(self.stale(now, stale_for).ok_or_else(|| error.clone()))
    }

    /// The last good answer, if it may still stand in for a failing resolver (T-42).
    fn stale(&self, now: Instant, stale_for: Option<Duration>) -> Option<Arc<[IpAddr]>> {
        let good = self.good.as_ref()?;
        let young = stale_for.is_none_or(|limit| now < good.fresh_until + limit);
        young.then(|| Arc::clone(&good.addresses))
    }

    fn is_useful(&self, now: Instant, stale_for: Option<Duration>) -> bool {
        self.flight.is_some()
            || self.known(now, stale_for).is_some()
            || self.stale(now, stale_for).is_some()
    }
}

#[cfg(test)]
mod tests;
