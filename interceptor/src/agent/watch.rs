//! Watches the API server, each feed in a task of its own. What comes is handed on in order; what
//! to make of it is `documents`' business.
//!
//! The library's watcher does a list in pages, then watches from where the list was, with bookmarks,
//! and starts over where the server says so within the stream (410). What it does not do is here:
//! an HTTP 410 at the start of a watch, kinds that are not served (yet), and telling people.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::pin::pin;
use std::time::Duration;

use futures_util::StreamExt as _;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{ApiResource, DynamicObject, GroupVersionKind, PartialObjectMeta};
use kube::runtime::watcher::{self, Config, DefaultBackoff, watcher};
use kube::{Api, Client, Resource, ResourceExt as _};
use serde::de::DeserializeOwned;
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;
use tokio::time::timeout;

use super::documents::{Event, Feed};
use super::kinds::{Kind, Name, Object};

/// Objects in one page of a list.
const PAGE: u32 = 500;

/// The longest wait between two attempts where the library's own back-off ends.
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// A watch on which nothing changes says nothing. After an error it is taken to work again when none
/// followed for this long, which is more than a connection may take to be made.
const CALM: Duration = Duration::from_secs(40);

/// What a watch says.
#[derive(Debug)]
pub(super) enum Told {
    /// Something of a feed.
    Event(Feed, Event),
    /// A watch does not work for now, and why.
    Failing(String, String),
    /// It works (again).
    Working(String),
    /// Something that people should know.
    Said(String),
}

/// What every watch needs.
#[derive(Clone)]
pub(super) struct Watcher {
    client: Client,
    /// Pods of this node only.
    node: String,
    /// The ConfigMap that is the mesh configuration.
    mesh: Name,
    out: mpsc::Sender<Told>,
    /// The names of the custom resource definitions that exist; `None` until that is known.
    defined: watch::Receiver<Option<BTreeSet<String>>>,
}

/// Why a watch came to its end.
enum Ended {
    /// Nobody listens any more.
    Unheard,
    /// The kind is not served in this version.
    NotServed,
}

impl Watcher {
    /// Starts with watching which of Istio's kinds the cluster has.
    pub(super) fn start(client: Client, node: String, mesh: Name, out: mpsc::Sender<Told>) -> Self {
        let (sender, defined) = watch::channel(None);
        tokio::spawn(definitions(client.clone(), sender, out.clone()));
        Self { client, node, mesh, out, defined }
    }

    /// Watches one feed, until the handle is used or the other end of `out` is gone.
    pub(super) fn follow(&self, feed: Feed) -> AbortHandle {
        let watcher = self.clone();
        tokio::spawn(async move {
            match feed.kind.is_custom() {
                true => watcher.custom(&feed).await,
                false => {
                    // The core's kinds are always served.
                    while let Ended::NotServed = watcher.watch(&feed, "v1").await {
                        tokio::time::sleep(LONGEST_WAIT).await;
                    }
                }
            }
        })
        .abort_handle()
    }

    /// A kind that may come, go, or change its version.
    async fn custom(mut self, feed: &Feed) {
        let definition = format!("{}.{}", feed.kind.plural(), feed.kind.group());
        let mut backoff = DefaultBackoff::default();
        loop {
            let is_defined =
                self.defined.borrow_and_update().as_ref().map(|all| all.contains(&definition));
            match is_defined {
                None => {}
                // None of it exists, which is as good as an empty list.
                Some(false) => {
                    for event in [Event::ListBegins, Event::ListEnds] {
                        if self.out.send(Told::Event(feed.clone(), event)).await.is_err() {
                            return;
                        }
                    }
                }
                Some(true) => {
                    if let Some(version) = self.served(feed).await
                        && let Ended::Unheard = self.watch(feed, version).await
                    {
                        return;
                    }
                    // Defined and not served: just about to be, or just about to go.
                    tokio::select! {
                        () = tokio::time::sleep(next(&mut backoff)) => {}
                        changed = self.defined.changed() => if changed.is_err() { return },
                    }
                    continue;
                }
            }
            if self.defined.changed().await.is_err() {
                return;
            }
        }
    }

    /// The best version that the API server has of a kind.
    async fn served(&self, feed: &Feed) -> Option<&'static str> {
        for version in feed.kind.versions() {
            let group = format!("{}/{version}", feed.kind.group());
            match self.client.list_api_group_resources(&group).await {
                Ok(list) if list.resources.iter().any(|one| one.name == feed.kind.plural()) => {
                    return Some(version);
                }
                Ok(_) => {}
                Err(error) if status(&error) == Some(404) => {}
                Err(error) => {
                    let told = Told::Failing(feed.to_string(), why(&error));
                    let _ = self.out.send(told).await;
                    return None;
                }
            }
        }
        None
    }

    fn api(&self, feed: &Feed, version: &str) -> (Api<DynamicObject>, Config) {
        let kind = feed.kind;
        let gvk = GroupVersionKind::gvk(kind.group(), version, kind.name());
        let resource = ApiResource::from_gvk_with_plural(&gvk, kind.plural());
        let client = self.client.clone();
        // Not from the server's cache, which may be older than what was seen before.
        let config = Config::default().page_size(PAGE);
        match &feed.only {
            Some(Name { namespace, name }) => (
                Api::namespaced_with(client, namespace, &resource),
                config.fields(&format!("metadata.name={name}")),
            ),
            None if kind == Kind::Pod => (
                Api::all_with(client, &resource),
                config.fields(&format!("spec.nodeName={}", self.node)),
            ),
            None => (Api::all_with(client, &resource), config),
        }
    }

    async fn watch(&self, feed: &Feed, version: &str) -> Ended {
        let (api, config) = self.api(feed, version);
        let hear = |event| self.tell(feed, version, event);
        pursue(&api, &config, &feed.to_string(), &self.out, hear).await
    }

    /// One event in our own words.
    fn tell(&self, feed: &Feed, version: &str, event: watcher::Event<DynamicObject>) -> Vec<Told> {
        let object = |object: &DynamicObject| {
            let value = serde_json::to_value(object).ok()?;
            let is_mesh = feed.kind == Kind::ConfigMap && feed.only.as_ref() == Some(&self.mesh);
            match is_mesh {
                true => Object::of_mesh(&value),
                false => Object::of(feed.kind, version, &value),
            }
        };
        let name = |object: &DynamicObject| Name {
            namespace: object.namespace().unwrap_or_default(),
            name: object.name_any(),
        };
        let event = match event {
            watcher::Event::Init => Some(Event::ListBegins),
            watcher::Event::InitApply(one) => object(&one).map(Event::Listed),
            watcher::Event::InitDone => Some(Event::ListEnds),
            // What is left of it may be nothing, as of a mesh configuration without `mesh`.
            watcher::Event::Apply(one) => {
                Some(object(&one).map_or_else(|| Event::Gone(name(&one)), Event::Put))
            }
            watcher::Event::Delete(one) => Some(Event::Gone(name(&one))),
        };
        event.map(|event| Told::Event(feed.clone(), event)).into_iter().collect()
    }
}

/// Follows the names of the custom resource definitions, without their content.
async fn definitions(
    client: Client,
    defined: watch::Sender<Option<BTreeSet<String>>>,
    out: mpsc::Sender<Told>,
) {
    const WHAT: &str = "customresourcedefinitions";
    let api: Api<PartialObjectMeta<CustomResourceDefinition>> = Api::all(client);
    let mut listing = BTreeSet::new();
    let hear = |event: watcher::Event<PartialObjectMeta<CustomResourceDefinition>>| {
        match event {
            watcher::Event::Init => listing.clear(),
            watcher::Event::InitApply(one) => _ = listing.insert(one.name_any()),
            watcher::Event::InitDone => {
                defined.send_replace(Some(std::mem::take(&mut listing)));
            }
            // Each change of one counts: it may be served only now.
            watcher::Event::Apply(one) => {
                defined.send_modify(|all| _ = all.get_or_insert_default().insert(one.name_any()));
            }
            watcher::Event::Delete(one) => {
                defined.send_modify(|all| _ = all.get_or_insert_default().remove(&one.name_any()));
            }
        }
        Vec::new()
    };
    let config = Config::default().page_size(PAGE);
    pursue(&api, &config, WHAT, &out, hear).await;
}

/// Watches until nobody listens, or what is watched is not served: `hear` says what to tell of each
/// event.
async fn pursue<K>(
    api: &Api<K>,
    config: &Config,
    what: &str,
    out: &mpsc::Sender<Told>,
    mut hear: impl FnMut(watcher::Event<K>) -> Vec<Told>,
) -> Ended
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let mut backoff = DefaultBackoff::default();
    // Something before may have failed.
    let mut is_failing = true;
    loop {
        let mut events = pin!(watcher(api.clone(), config.clone()));
        loop {
            let calm = if is_failing { CALM } else { Duration::MAX };
            let event = timeout(calm, events.next()).await;
            let works = match &event {
                // A list that begins was only asked for.
                Ok(Some(event)) => event.as_ref().is_ok_and(|event| !is_begin(event)),
                Ok(None) => false,
                Err(_) => true,
            };
            if is_failing && works {
                is_failing = false;
                if out.send(Told::Working(what.to_owned())).await.is_err() {
                    return Ended::Unheard;
                }
            }
            // The watcher's stream has no end.
            let Ok(Some(event)) = event else { continue };
            let error = match event {
                Ok(event) => {
                    for told in hear(event) {
                        if out.send(told).await.is_err() {
                            return Ended::Unheard;
                        }
                    }
                    continue;
                }
                Err(error) => error,
            };
            let (code, at_start) = kind_of(&error);
            if code == Some(404) {
                return Ended::NotServed;
            }
            // 410 is the server's way to ask for a new list, and no trouble.
            is_failing |= code != Some(410);
            if code != Some(410)
                && out.send(Told::Failing(what.to_owned(), why_not(&error))).await.is_err()
            {
                return Ended::Unheard;
            }
            tokio::time::sleep(next(&mut backoff)).await;
            if code == Some(410) && at_start {
                // Else the library asks for the same version again, for ever.
                break;
            }
        }
    }
}

fn is_begin<K>(event: &watcher::Event<K>) -> bool {
    matches!(event, watcher::Event::Init)
}

/// How long to wait before the next attempt, jitter included.
fn next(backoff: &mut DefaultBackoff) -> Duration {
    backoff.next().unwrap_or(LONGEST_WAIT)
}

/// The HTTP status that an error is, and whether it came at the start of a watch.
fn kind_of(error: &watcher::Error) -> (Option<u16>, bool) {
    match error {
        watcher::Error::InitialListFailed(error) => (status(error), false),
        watcher::Error::WatchStartFailed(error) => (status(error), true),
        watcher::Error::WatchFailed(error) => (status(error), false),
        watcher::Error::WatchError(status) => (Some(status.code), false),
        watcher::Error::NoResourceVersion => (None, false),
    }
}

/// What people are told of an error.
fn why_not(error: &watcher::Error) -> String {
    match error {
        watcher::Error::InitialListFailed(error)
        | watcher::Error::WatchStartFailed(error)
        | watcher::Error::WatchFailed(error) => why(error),
        watcher::Error::WatchError(status) => format!("{} ({})", status.message, status.code),
        watcher::Error::NoResourceVersion => error.to_string(),
    }
}

/// What people are told of an error of the client.
pub(super) fn why(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => format!("{} ({})", status.message, status.code),
        // The outer ones name layers of the client only.
        error => {
            let mut inner: &dyn std::error::Error = error;
            while let Some(source) = inner.source() {
                inner = source;
            }
            inner.to_string()
        }
    }
}

/// The HTTP status that an error of the client is.
pub(super) fn status(error: &kube::Error) -> Option<u16> {
    match error {
        kube::Error::Api(status) => Some(status.code),
        _ => None,
    }
}
