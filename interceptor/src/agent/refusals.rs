//! Tells the owners of pods what was refused to these, by Events on the pods.
//!
//! A workload can be refused as often as it likes, with another name each time. So a target is told once
//! in five minutes, a pod has ten Events and then one a minute, a node ten and then one each half minute;
//! the rest is in the access log and in the metrics, which count each.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use kube::Client;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, timeout};

use super::Name;
use super::state::State;
use super::watch::{status, why};
use crate::account::Refusal;
use crate::decide::Reason;
use crate::decide::host::HostName;
use crate::explain::nearest_to;
use crate::workloads::PodIdentity;

/// A target is told again after this long; the library counts on while it has told within six minutes.
const AGAIN: Duration = Duration::from_secs(300);

/// Events at once, and how long until there may be one more.
const OF_POD: (u32, Duration) = (10, Duration::from_secs(60));
const OF_NODE: (u32, Duration) = (10, Duration::from_secs(30));

/// Targets that are remembered.
const MOST: usize = 4096;

/// Until Events are tried again that may not be written.
const FORBIDDEN: Duration = Duration::from_secs(600);

/// How long the API server may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Refusals that wait to be told. Beyond them they are not.
pub const QUEUE: usize = 256;

/// The longest note, in bytes: Events allow 1 KiB.
const LONGEST: usize = 1000;

/// What tells.
pub struct Refusals {
    recorder: Recorder,
    state: Arc<Mutex<State>>,
    pace: Pace,
    /// Nothing is told before.
    rests: Option<Instant>,
    said: bool,
}

impl Refusals {
    /// Tells of the pods of `node`.
    pub fn new(client: Client, node: &str, state: Arc<Mutex<State>>) -> Self {
        let controller = "egress.interceptor.io/agent".to_owned();
        let reporter = Reporter { controller, instance: Some(node.to_owned()) };
        let recorder = Recorder::new(client, reporter);
        Self { recorder, state, pace: Pace::default(), rests: None, said: false }
    }

    /// Tells what comes, until nothing can come any more.
    pub async fn run(mut self, mut heard: mpsc::Receiver<Refusal>) {
        while let Some(refusal) = heard.recv().await {
            self.tell(&refusal).await;
        }
    }

    async fn tell(&mut self, refusal: &Refusal) {
        let now = Instant::now();
        let target = target(refusal);
        if self.rests.is_some_and(|until| now < until)
            || !self.pace.admits(&refusal.pod, &told_as(refusal, &target), now)
        {
            return;
        }
        let event = Event {
            type_: EventType::Warning,
            reason: if refusal.audited { "EgressAudited" } else { "EgressRefused" }.to_owned(),
            note: Some(self.note(refusal, &target).await),
            // Events with the same one are counted together.
            action: shortened(format!("Connect {target}"), 128),
            secondary: None,
        };
        let pod = &refusal.pod;
        let reference = ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Pod".to_owned()),
            namespace: Some(pod.namespace.to_string()),
            name: Some(pod.name.to_string()),
            uid: Some(pod.uid.to_string()),
            ..ObjectReference::default()
        };
        let told = timeout(PATIENCE, self.recorder.publish(&event, &reference)).await;
        let error = match told {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error,
            Err(_) => {
                return tracing::warn!("an Event on pod {}/{}: no answer", pod.namespace, pod.name);
            }
        };
        if matches!(status(&error), Some(401 | 403)) {
            self.rests = Some(now + FORBIDDEN);
            if !std::mem::replace(&mut self.said, true) {
                eprintln!(
                    "interceptor: warning: Events cannot be written, so that owners of pods find \
                     refusals in the access log only; what is enforced does not hang on it: {}",
                    why(&error)
                );
            }
        } else {
            tracing::warn!("an Event on pod {}/{}: {}", pod.namespace, pod.name, why(&error));
        }
    }

    async fn note(&self, refusal: &Refusal, target: &str) -> String {
        let Refusal { pod, dst, reason, .. } = refusal;
        let refused =
            if refusal.audited { "would be refused, and audit lets it go" } else { "refused" };
        let mut note = format!("egress to {target} {refused} ({}): ", reason.label());
        note += &match reason {
            Reason::NotRegistered => {
                format!("no ServiceEntry that namespace {} sees is for it", pod.namespace)
            }
            reason => reason.explain().to_owned(),
        };
        let name = Name { namespace: pod.namespace.to_string(), name: pod.name.to_string() };
        let (state, asked, dst) = (Arc::clone(&self.state), named(refusal), *dst);
        // Beside the runtime: while a set is compiled the state is not to be had.
        let nearest = spawn_blocking(move || {
            let snapshot = {
                let state = state.lock().unwrap_or_else(PoisonError::into_inner);
                let (_, one) = state.pods().find(|(known, _)| **known == name)?;
                state.policy(&one.pod)?.store.current()
            };
            nearest_to(&snapshot.policy, asked.as_ref(), dst)
        });
        if let Ok(Some(nearest)) = nearest.await {
            note +=
                &format!("; nearest {}, {}: {}", nearest.offers, nearest.resource, nearest.hint);
        }
        shortened(note, LONGEST)
    }
}

/// The name that was shown, if it is one: nobody's text is passed on as it came.
fn named(refusal: &Refusal) -> Option<HostName> {
    let text = refusal.name.as_deref()?;
    let host = text.rsplit_once(':').map_or(text, |(host, _)| host);
    HostName::parse(host).ok()
}

/// Where it was to go, as people call it.
fn target(refusal: &Refusal) -> String {
    match named(refusal) {
        Some(name) => format!("{name}:{}", refusal.dst.port()),
        None => SocketAddr::to_string(&refusal.dst),
    }
}

/// What counts as told: that it is refused is news to who knows that it would be.
fn told_as(refusal: &Refusal, target: &str) -> String {
    format!("{}{target}", if refusal.audited { "audit " } else { "" })
}

fn shortened(mut text: String, most: usize) -> String {
    text.truncate(text.floor_char_boundary(most));
    text
}

/// How much is told.
#[derive(Debug, Default)]
struct Pace {
    told: HashMap<(Arc<str>, String), Instant>,
    pods: HashMap<Arc<str>, Bucket>,
    node: Bucket,
}

impl Pace {
    /// Whether this may be told now; if so it counts as told.
    fn admits(&mut self, pod: &PodIdentity, target: &str, now: Instant) -> bool {
        self.told.retain(|_, at| now.duration_since(*at) < AGAIN);
        self.pods.retain(|_, bucket| !bucket.is_full(now));
        let key = (Arc::clone(&pod.uid), target.to_owned());
        if self.told.len() >= MOST || self.told.contains_key(&key) {
            return false;
        }
        let bucket = self.pods.entry(Arc::clone(&pod.uid)).or_default();
        let admits = bucket.has(OF_POD, now) && self.node.has(OF_NODE, now);
        if admits {
            bucket.take(OF_POD, now);
            self.node.take(OF_NODE, now);
            self.told.insert(key, now);
        }
        admits
    }
}

/// A bucket of tokens, by when it would be full again.
#[derive(Debug, Default)]
struct Bucket(Option<Instant>);

impl Bucket {
    fn is_full(&self, now: Instant) -> bool {
        self.0.is_none_or(|full| full <= now)
    }

    fn has(&self, (burst, each): (u32, Duration), now: Instant) -> bool {
        self.0.is_none_or(|full| full.saturating_duration_since(now) <= each * (burst - 1))
    }

    fn take(&mut self, (_, each): (u32, Duration), now: Instant) {
        self.0 = Some(self.0.map_or(now, |full| full.max(now)) + each);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workloads::testing::web_0;

    #[test]
    fn a_flood_of_refusals_is_a_few_events() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let (mut pace, web) = (Pace::default(), web_0());
        let api = PodIdentity { uid: "other".into(), ..web_0() };
        assert!(pace.admits(&web, "a.test:443", at(0)));
        assert!(!pace.admits(&web, "a.test:443", at(299)), "told within five minutes");
        assert!(pace.admits(&web, "a.test:443", at(301)));
        // Another name each time, for an hour.
        let told = |pace: &mut Pace, pod: &PodIdentity, from: u64| {
            let one = |n: &u64| pace.admits(pod, &format!("n{n}.test:443"), at(from + n));
            (0..3600).filter(one).count()
        };
        let of_web = told(&mut pace, &web, 1000);
        assert!((65..75).contains(&of_web), "{of_web}");
        // It does not take another pod's away: the node's are more.
        assert!(pace.admits(&api, "b.test:443", at(4600)));
        let mut pace = Pace::default();
        let all: usize = (0..3600)
            .filter(|n| {
                let pod = PodIdentity { uid: format!("u{n}").into(), ..web_0() };
                pace.admits(&pod, "a.test:443", at(*n))
            })
            .count();
        assert!((125..135).contains(&all), "{all}");
        assert!(pace.told.len() <= MOST && pace.pods.len() < 70, "{}", pace.pods.len());
    }
}
