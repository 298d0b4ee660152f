//! How egress proxies do, by use: one that fails rests, for longer each time, and then has to serve
//! one connection before it gets others.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::act::dial::random_below;
use crate::decide::door::{EgressProxy, Speaks};

/// The first rest; each next one is twice as long.
const REST: Duration = Duration::from_secs(1);
/// No rest is longer.
const REST_MAX: Duration = Duration::from_secs(60);
/// Faults in a row after which a proxy rests.
const STRIKES: u32 = 3;
/// Proxies remembered; those of former policies go first.
const KEPT_MAX: usize = 256;

/// What a failure says of a proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// It cannot be reached: it rests at once.
    Down,
    /// It gave no answer, for which the target may be to blame: it rests if that repeats.
    Mute,
}

/// The state of the proxies that a site has used.
#[derive(Debug, Default)]
pub struct Health {
    states: Mutex<Vec<State>>,
}

/// What is known of one.
#[derive(Debug)]
struct State {
    proxy: Arc<EgressProxy>,
    served: u64,
    failed: u64,
    strikes: u32,
    rests: u32,
    /// Until when it rests, or rested: it did not serve since.
    until: Option<Instant>,
    /// A connection is trying it after its rest.
    on_trial: bool,
    last: Option<String>,
}

/// A proxy as people see it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ProxyState {
    /// `corp-1 (http://proxy-1.corp.example:3128)`.
    pub proxy: String,
    /// Connections that left through it.
    pub served: u64,
    /// Those for which it failed.
    pub failed: u64,
    /// For how long it rests still, in milliseconds; `None`: it does not.
    pub rests_ms: Option<u64>,
    /// Its last failure.
    pub last: Option<String>,
}

/// One connection's turn at a proxy. Dropped without a result, it says nothing.
pub(super) struct Trial<'a> {
    health: &'a Health,
    pub(super) proxy: &'a Arc<EgressProxy>,
    /// It is the one try after a rest.
    after_rest: bool,
    settled: AtomicBool,
}

impl Health {
    /// The proxies in the order in which a connection should try them: those that do not rest, and one
    /// connection for each whose rest is over. Where all rest, all of them.
    pub(super) fn order<'a>(&'a self, proxies: &'a [Arc<EgressProxy>]) -> Vec<Trial<'a>> {
        let now = Instant::now();
        let trial = |proxy, after_rest| Trial {
            health: self,
            proxy,
            after_rest,
            settled: AtomicBool::new(false),
        };
        let mut fit = Vec::new();
        let mut states = self.lock();
        for proxy in proxies {
            let state = find(&mut states, proxy);
            match state.until {
                None => fit.push(trial(proxy, false)),
                Some(until) if until <= now && !state.on_trial => {
                    state.on_trial = true;
                    fit.push(trial(proxy, true));
                }
                Some(_) => {}
            }
        }
        if fit.is_empty() {
            fit.extend(proxies.iter().map(|proxy| trial(proxy, false)));
        }
        // Gateways that are listed one behind the other are equals.
        let equals =
            fit.iter().take_while(|trial| matches!(trial.proxy.speaks, Speaks::Gateway(_))).count();
        let start = random_below(equals as u64);
        fit[..equals].rotate_left(usize::try_from(start).unwrap_or(0));
        fit
    }

    /// What is known of every proxy used so far.
    pub fn report(&self) -> Vec<ProxyState> {
        let now = Instant::now();
        let rests = |state: &State| {
            let left = state.until?.checked_duration_since(now)?;
            Some(u64::try_from(left.as_millis()).unwrap_or(u64::MAX))
        };
        let state = |state: &State| ProxyState {
            proxy: state.proxy.to_string(),
            served: state.served,
            failed: state.failed,
            rests_ms: rests(state),
            last: state.last.clone(),
        };
        self.lock().iter().map(state).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<State>> {
        // Nothing here leaves a state half written.
        self.states.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn find<'s>(states: &'s mut Vec<State>, proxy: &Arc<EgressProxy>) -> &'s mut State {
    let is_it = |state: &State| {
        let known = &state.proxy;
        (&known.name, &known.place, known.port) == (&proxy.name, &proxy.place, proxy.port)
    };
    if let Some(at) = states.iter().position(is_it) {
        return &mut states[at];
    }
    if states.len() == KEPT_MAX {
        states.remove(0);
    }
    let new = State {
        proxy: Arc::clone(proxy),
        served: 0,
        failed: 0,
        strikes: 0,
        rests: 0,
        until: None,
        on_trial: false,
        last: None,
    };
    states.push(new);
    let last = states.len() - 1;
    &mut states[last]
}

impl Trial<'_> {
    /// It answered as it should.
    pub(super) fn worked(&self) {
        self.settle(|state| {
            state.served += 1;
            (state.strikes, state.rests, state.until) = (0, 0, None);
        });
    }

    /// It did not.
    pub(super) fn failed(&self, fault: Fault, why: &impl ToString) {
        let now = Instant::now();
        self.settle(|state| {
            state.failed += 1;
            state.last = Some(why.to_string());
            state.strikes += if fault == Fault::Down { STRIKES } else { 1 };
            let rested = state.until.is_none_or(|until| until <= now);
            if state.strikes >= STRIKES && rested {
                let rest = REST.saturating_mul(1 << state.rests.min(10)).min(REST_MAX);
                state.until = Some(now + rest);
                state.rests += 1;
            }
        });
    }

    /// Another proxy, which began later, gave the way out before this one said anything.
    pub(super) fn overtaken(&self) {
        if !self.settled.load(Ordering::Relaxed) {
            self.failed(Fault::Mute, &"another proxy answered before it");
        }
    }

    fn settle(&self, change: impl FnOnce(&mut State)) {
        self.settled.store(true, Ordering::Relaxed);
        change(find(&mut self.health.lock(), self.proxy));
    }
}

impl Drop for Trial<'_> {
    fn drop(&mut self) {
        if self.after_rest {
            find(&mut self.health.lock(), self.proxy).on_trial = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decide::Place;
    use crate::decide::door::Speaks;

    fn proxies() -> Vec<Arc<EgressProxy>> {
        let proxy = |name: &str| {
            Arc::new(EgressProxy {
                name: name.into(),
                speaks: Speaks::Http,
                place: Place::Ip([192, 0, 2, 1].into()),
                port: 3128,
                login: None,
            })
        };
        vec![proxy("a"), proxy("b")]
    }

    fn names(health: &Health, proxies: &[Arc<EgressProxy>]) -> String {
        health.order(proxies).iter().map(|trial| trial.proxy.name.to_string()).collect()
    }

    async fn pass(seconds: u64) {
        tokio::time::advance(Duration::from_secs(seconds)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn rests_grow_and_end_with_one_trial() {
        let (health, proxies) = (Health::default(), proxies());
        assert_eq!(names(&health, &proxies), "ab");
        health.order(&proxies)[0].failed(Fault::Down, &"refused");
        assert_eq!(names(&health, &proxies), "b");
        pass(1).await;
        let trial = health.order(&proxies);
        assert_eq!(trial[0].proxy.name.as_ref(), "a");
        assert_eq!(names(&health, &proxies), "b", "one trial at a time");
        trial[0].failed(Fault::Down, &"refused");
        drop(trial);
        pass(1).await;
        assert_eq!(names(&health, &proxies), "b", "the second rest is longer");
        pass(1).await;
        let trial = health.order(&proxies);
        trial[0].worked();
        drop(trial);
        assert_eq!(names(&health, &proxies), "ab");
        let a = &health.report()[0];
        assert_eq!((a.served, a.failed, a.rests_ms), (1, 2, None));
        // What worked begins anew.
        health.order(&proxies)[0].failed(Fault::Down, &"refused");
        pass(1).await;
        assert_eq!(names(&health, &proxies), "ab");
    }

    #[tokio::test(start_paused = true)]
    async fn silence_counts_when_it_repeats_and_a_lone_proxy_is_tried_all_the_same() {
        let (health, proxies) = (Health::default(), proxies());
        for left in ["ab", "ab", "b"] {
            health.order(&proxies)[0].overtaken();
            assert_eq!(names(&health, &proxies), left);
        }
        health.order(&proxies)[0].failed(Fault::Down, &"refused");
        assert_eq!(names(&health, &proxies), "ab", "all rest, so all are tried");
        assert!(health.report().iter().all(|proxy| proxy.rests_ms.is_some()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_trial_that_says_nothing_leaves_the_next_one_to_it() {
        let (health, proxies) = (Health::default(), proxies());
        health.order(&proxies)[0].failed(Fault::Down, &"refused");
        pass(1).await;
        drop(health.order(&proxies));
        assert_eq!(names(&health, &proxies), "ab");
    }
}
