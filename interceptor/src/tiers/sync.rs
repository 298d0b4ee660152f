//! Keeps the kernel's tables in step with policy and with names' addresses.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use interceptor_common::{EndpointRule, EndpointVerdict};
use ipnet::IpNet;
use tokio::sync::Semaphore;

use super::book::{AddressBook, RETIRING};
use super::commons::Commons;
use super::compile::{compile, spoken};
use super::fallback::Fallbacks;
use super::hints::Heard;
use super::learned::Learned;
use super::rows::{Compiled, NameSet, Row};
use super::survey::{Survey, network_of};
use crate::decide::host::HostName;
use crate::decide::tier::WhyProxy;
use crate::kernel::{DirectTables, EndpointRow, Inherited, TableError};
use crate::policy::{Enforcement, Snapshot, Store};

/// How often names whose answers ran out are asked for anew: less than an address lingers.
const REFRESH: Duration = Duration::from_secs(3);
/// How much longer than an update the pause after it is.
const PAUSE: u32 = 9;
/// Questions under way at a time.
const QUESTIONS: usize = 16;
/// Names that are asked for before anybody connects. Further ones are learned from the proxy's own
/// lookups.
const MAX_ASKED: usize = 1024;
/// How long a destination that the kernel could not judge stays with the proxy.
const AVOID: Duration = Duration::from_secs(600);
/// Most such destinations; the oldest go.
const MAX_AVOIDED: usize = 1024;
/// Most destinations of which it is known that clients do not speak HTTP there; further ones are
/// learned when some of them are forgotten, after [`AVOID`].
const MAX_SPOKEN: usize = 4096;
/// A row that gives a destination to the proxy.
const PROXY: EndpointRule =
    EndpointRule { verdict: EndpointVerdict::Proxy as u8, pad: 0, names: 0, label: 0 };

/// The tables could not be written; the policy's rows were removed, so everything is the proxy's.
#[derive(Debug, thiserror::Error)]
#[error("the tables of what goes direct cannot be written, so everything goes by the proxy: {0}")]
pub struct SyncError(#[from] TableError);

/// Keeps one policy's rows in the kernel's tables in step.
pub struct Sync {
    commons: Arc<Commons>,
    /// Its number in the tables.
    policy: u16,
    fallbacks: Arc<Fallbacks>,
    namespace: Arc<str>,
    questions: Arc<Semaphore>,
    learned: Arc<Mutex<Learned>>,
    state: Mutex<State>,
}

/// Why a name is asked for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Why {
    /// A workload did so.
    Heard,
    /// The tables need its addresses.
    Policy,
}

#[derive(Default)]
struct State {
    book: AddressBook,
    survey: Arc<Survey>,
    /// Generation of the policy that was compiled last; 0: none.
    generation: u64,
    /// What [`Commons`] said then.
    lets_go: bool,
    avoided: VecDeque<(SocketAddr, Instant)>,
    /// The log has names for what no entry claims: those are asked for too.
    names_all: bool,
    /// Where a client spoke, and not HTTP.
    spoken: HashMap<SocketAddr, Instant>,
    heard: Heard,
    /// The name that found no room when names were asked for.
    ask_first: Option<HostName>,
    written: Written,
    /// The rows are another daemon's by now, or nobody's.
    left: bool,
}

/// What lies in the kernel's tables.
#[derive(Default)]
struct Written {
    rules: BTreeMap<(u16, IpNet), EndpointRule>,
    /// The sets that rules point at, by number.
    sets: HashMap<Arc<NameSet>, u16>,
    /// What a predecessor wrote, and since when it retires.
    inherited: Option<(Inherited, Option<Instant>)>,
}

impl Sync {
    /// The policy of workloads in `namespace`, by its number in the tables. Nothing is written before
    /// the first [`Sync::apply`].
    pub fn new(commons: Arc<Commons>, policy: u16, namespace: &str) -> Self {
        Self {
            commons,
            policy,
            fallbacks: Arc::default(),
            namespace: namespace.into(),
            questions: Arc::new(Semaphore::new(QUESTIONS)),
            learned: Arc::default(),
            state: Mutex::default(),
        }
    }

    /// Why connections come to the proxy.
    pub fn fallbacks(&self) -> &Arc<Fallbacks> {
        &self.fallbacks
    }

    /// Takes over the tables as a predecessor left them. With the first [`Sync::apply`] its rows
    /// retire, as do addresses that are in no answer any more.
    pub fn inherit(&self) {
        let inherited = self.commons.kernel.direct().inherited();
        self.commons.sets().inherit(inherited.sets().clone());
        self.state().written.inherited = Some((inherited, None));
    }

    /// Leaves the tables to another daemon: nothing is written from here on.
    pub fn leave(&self) {
        self.state().left = true;
    }

    /// Takes the policy's rows out: nobody has it any more.
    ///
    /// # Errors
    /// [`TableError`]; what can be removed is.
    pub fn clear(&self) -> Result<(), TableError> {
        let mut state = self.state();
        state.left = true;
        let mut tables = self.commons.kernel.direct();
        state.written.clear(self, &mut tables)
    }

    /// Makes the tables those of `snapshot`, with the addresses that are known now.
    ///
    /// # Errors
    /// [`SyncError`].
    pub fn apply(&self, snapshot: &Snapshot) -> Result<(), SyncError> {
        self.update(snapshot, true)
    }

    /// Whether the daemon itself found `ip` to be an address of `host`, not long ago.
    pub fn owns(&self, host: &HostName, ip: IpAddr) -> bool {
        self.state().book.has(host, ip.to_canonical())
    }

    /// Sends connections to `dst` to the proxy for a while: the kernel cannot judge what is said
    /// there, or its judgement was narrower than the proxy's.
    pub fn avoid(&self, dst: SocketAddr) {
        let mut state = self.state();
        if state.left {
            return;
        }
        state.avoided.retain(|(avoided, _)| *avoided != dst);
        if state.avoided.len() == MAX_AVOIDED {
            state.avoided.pop_front();
        }
        state.avoided.push_back((dst, Instant::now()));
        // At once; the next compilation has it too.
        let (place, rule) = ((dst.port(), network_of(dst.ip())), PROXY);
        match self.commons.kernel.direct().set_endpoint(self.row_of(place), rule) {
            Ok(()) => {
                state.written.rules.insert(place, rule);
                self.fallbacks.remember(dst);
            }
            Err(error) => tracing::warn!("{dst} stays direct: {error}"),
        }
    }

    /// A client that `snapshot` lets pass anywhere spoke at `dst`, and not HTTP: the next one may go
    /// direct.
    pub fn spoke(&self, snapshot: &Snapshot, dst: SocketAddr) {
        let mut state = self.state();
        let enabled = self.commons.lets_go() && snapshot.fast_path && !state.left;
        let known = state.spoken.contains_key(&dst);
        let avoided = state.avoided.iter().any(|(avoided, _)| *avoided == dst);
        let stale = snapshot.generation != state.generation;
        if !enabled || known || avoided || stale || state.spoken.len() >= MAX_SPOKEN {
            return;
        }
        let Some(row) = spoken(snapshot, &self.namespace, &state.book, dst) else { return };
        let place = (dst.port(), network_of(dst.ip()));
        let Row::Noticed(label) = &row else { return };
        if state.written.rules.contains_key(&place) {
            return;
        }
        let rule = EndpointRule {
            verdict: EndpointVerdict::Noticed as u8,
            label: self.commons.labels.number(label),
            ..PROXY
        };
        match self.commons.kernel.direct().set_endpoint(self.row_of(place), rule) {
            Ok(()) => {
                state.written.rules.insert(place, rule);
                state.spoken.insert(dst, Instant::now());
            }
            Err(error) => tracing::warn!("{dst} stays with the proxy: {error}"),
        }
    }

    /// The workload got an answer for `name`: if policy could use its addresses, or the log may have
    /// to tell what they are (GAP-4), the daemon asks for them itself.
    pub fn hear(&self, name: HostName) {
        {
            let mut state = self.state();
            if state.survey.could_use(&name) {
                state.heard.note(name.clone(), Instant::now());
            } else if !state.names_all {
                return;
            }
        }
        self.look_up(&name, Why::Heard);
    }

    /// The name for which the workload, and then the daemon itself, was last given this address.
    pub fn name_of(&self, ip: IpAddr) -> Option<HostName> {
        self.learned().get(ip.to_canonical()).cloned()
    }

    fn learned(&self) -> MutexGuard<'_, Learned> {
        self.learned.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks for a name, unless enough questions are under way.
    fn look_up(&self, name: &HostName, why: Why) -> bool {
        let Ok(room) = Arc::clone(&self.questions).try_acquire_owned() else { return false };
        let (resolver, name) = (Arc::clone(&self.commons.resolver), name.clone());
        let learned = Arc::clone(&self.learned);
        tokio::spawn(async move {
            let found = resolver.lookup(&name).await;
            if let (Ok(addresses), Why::Heard) = (found, why) {
                let mut learned = learned.lock().unwrap_or_else(PoisonError::into_inner);
                learned.note(&name, &addresses, Instant::now());
            }
            drop(room);
        });
        true
    }

    /// Follows the resolver's answers and policy's changes, for ever.
    pub async fn follow(self: Arc<Self>, policy: Arc<Store>) {
        let mut news = self.commons.resolver.news();
        let mut tick = tokio::time::interval(REFRESH);
        loop {
            tokio::select! {
                heard = news.changed() => if heard.is_err() { return },
                _ = tick.tick() => self.ask(),
            }
            let started = Instant::now();
            if let Err(error) = self.update(&policy.current(), false) {
                tracing::error!("{error}");
            }
            // However often answers change, this takes no more than a small part of the time.
            tokio::time::sleep(started.elapsed() * PAUSE).await;
        }
    }

    /// Asks for names whose answers ran out.
    fn ask(&self) {
        let (survey, heard, first) = {
            let mut state = self.state();
            let heard = state.heard.names(Instant::now());
            (Arc::clone(&state.survey), heard, state.ask_first.take())
        };
        let known = survey.hosts().into_iter().take(MAX_ASKED);
        // Policy may have changed since they were heard.
        let heard = heard.iter().filter(|name| survey.could_use(name));
        let names: BTreeSet<&HostName> = known.chain(heard).collect();
        // In turn: names that never resolve are asked for at each, and must not keep out the others.
        let (earlier, later): (Vec<&HostName>, Vec<_>) =
            names.into_iter().partition(|name| first.as_ref().is_some_and(|first| *name < first));
        let mut names = later.into_iter().chain(earlier);
        // Those that find no room now are asked for at the next turn.
        let left = names.find(|name| {
            !self.commons.resolver.remembers(name) && !self.look_up(name, Why::Policy)
        });
        self.state().ask_first = left.cloned();
    }

    fn update(&self, snapshot: &Snapshot, always: bool) -> Result<(), SyncError> {
        let mut state = self.state();
        // A reload is under way, and was here already.
        if state.left || !always && snapshot.generation < state.generation {
            return Ok(());
        }
        let lets_go = self.commons.lets_go();
        let enabled = lets_go && snapshot.fast_path;
        let now = Instant::now();
        let mut changed =
            always || state.generation != snapshot.generation || state.lets_go != lets_go;
        if changed {
            state.lets_go = lets_go;
            state.generation = snapshot.generation;
            state.names_all =
                snapshot.enforcement == Enforcement::Strict && snapshot.outbound.is_open();
            state.survey =
                Arc::new(if enabled { Survey::of(&snapshot.policy) } else { Survey::default() });
        }
        let known = self.commons.resolver.known();
        changed |= state.book.update(known.iter().map(|(host, ips)| (host, &**ips)), now);
        let remembered = state.avoided.len() + state.spoken.len();
        state.avoided.retain(|(_, since)| now.duration_since(*since) < AVOID);
        state.spoken.retain(|_, since| now.duration_since(*since) < AVOID);
        changed |= state.written.has_retired(now);
        if !changed && state.avoided.len() + state.spoken.len() == remembered {
            return Ok(());
        }
        let mut compiled = Compiled::default();
        if enabled {
            compiled = compile(
                snapshot,
                &self.namespace,
                &state.survey,
                &state.book,
                state.spoken.keys().copied(),
            );
            for (dst, _) in &state.avoided {
                let why = Row::Proxy(WhyProxy::Remembered);
                compiled.rows.insert((dst.port(), network_of(dst.ip())), why);
            }
        }
        self.fallbacks.replace(&compiled);
        let mut tables = self.commons.kernel.direct();
        let written = state.written.replace(&compiled, self, &mut tables, now);
        written.inspect_err(|_| {
            if let Err(error) = state.written.clear(self, &mut tables) {
                tracing::error!("emptying them: {error}");
            }
        })?;
        Ok(())
    }

    fn row_of(&self, (port, network): (u16, IpNet)) -> EndpointRow {
        EndpointRow { policy: self.policy, port, network }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Written {
    /// Replaces what lies in the tables. What stays allowed is so all the time, and nothing is that
    /// should not: names come before the rows that point at them and go after; narrow rows come
    /// before the wide ones around them and go after.
    fn replace(
        &mut self,
        compiled: &Compiled,
        sync: &Sync,
        tables: &mut DirectTables,
        now: Instant,
    ) -> Result<(), TableError> {
        let labels = &sync.commons.labels;
        let mut sets = HashMap::new();
        let mut rules = BTreeMap::new();
        for (place, row) in &compiled.rows {
            let mut rule = PROXY;
            rule.verdict = match row {
                Row::Proxy(_) => EndpointVerdict::Proxy,
                Row::Refused(_) => EndpointVerdict::Refused,
                Row::Direct(label) => {
                    rule.label = labels.number(label);
                    EndpointVerdict::Direct
                }
                Row::Noticed(label) => {
                    rule.label = labels.number(label);
                    EndpointVerdict::Noticed
                }
                Row::Named(set) | Row::Retiring(set) => {
                    let number = self.number(set, &mut sets, sync, tables)?;
                    rule.names = number.unwrap_or(0);
                    match (row, number) {
                        (Row::Named(_), Some(_)) => EndpointVerdict::Named,
                        _ => EndpointVerdict::Proxy,
                    }
                }
            } as u8;
            rules.insert(*place, rule);
        }
        let mut places: Vec<_> = rules.keys().copied().collect();
        places.sort_by_key(|(_, network)| std::cmp::Reverse(network.prefix_len()));
        for place in places {
            let rule = rules[&place];
            if self.rules.get(&place) != Some(&rule) {
                tables.set_endpoint(sync.row_of(place), rule)?;
            }
        }
        let mut stale: Vec<_> =
            self.rules.keys().filter(|place| !rules.contains_key(*place)).copied().collect();
        stale.sort_by_key(|(_, network)| network.prefix_len());
        for place in stale {
            tables.remove_endpoint(sync.row_of(place))?;
        }
        self.rules = rules;
        let gone: Vec<_> =
            self.sets.keys().filter(|set| !sets.contains_key(*set)).map(Arc::clone).collect();
        for set in gone {
            self.sets.remove(&set);
            sync.commons.sets().give_back(&set, tables)?;
        }
        self.replace_inherited(sync, tables, now)
    }

    /// Takes everything out, as far as it can be.
    fn clear(&mut self, sync: &Sync, tables: &mut DirectTables) -> Result<(), TableError> {
        let Self { sets, inherited, .. } = std::mem::take(self);
        let mut result = tables.clear_policy(sync.policy);
        if let Some((inherited, _)) = inherited {
            result = result.and(tables.forget(inherited, std::iter::empty()));
            sync.commons.sets().inherit(BTreeSet::new());
        }
        for set in sets.keys() {
            result = result.and(sync.commons.sets().give_back(set, tables));
        }
        result
    }

    /// A predecessor's rows give way: first for new connections, then, once those under way had time to
    /// show their names, altogether.
    fn replace_inherited(
        &mut self,
        sync: &Sync,
        tables: &mut DirectTables,
        now: Instant,
    ) -> Result<(), TableError> {
        let has_retired = self.has_retired(now);
        let ours = self.rules.keys().map(|place| sync.row_of(*place));
        match self.inherited.take() {
            Some((inherited, Some(_))) if has_retired => {
                tables.forget(inherited, ours)?;
                sync.commons.sets().inherit(BTreeSet::new());
            }
            Some((mut inherited, None)) => {
                tables.retire(&mut inherited, ours)?;
                self.inherited = Some((inherited, Some(now)));
            }
            other => self.inherited = other,
        }
        Ok(())
    }

    /// Whether a predecessor's rows have retired for long enough.
    fn has_retired(&self, now: Instant) -> bool {
        let since = self.inherited.as_ref().and_then(|(_, since)| *since);
        since.is_some_and(|since| now.duration_since(since) >= RETIRING)
    }

    /// The number of a set, which lies in the table then; `None`: there are too many.
    fn number(
        &mut self,
        set: &Arc<NameSet>,
        sets: &mut HashMap<Arc<NameSet>, u16>,
        sync: &Sync,
        tables: &mut DirectTables,
    ) -> Result<Option<u16>, TableError> {
        let number = match self.sets.get(set) {
            Some(number) => *number,
            None => {
                let taken = sync.commons.sets().take(set, &sync.commons.labels, tables)?;
                let Some(number) = taken else { return Ok(None) };
                self.sets.insert(Arc::clone(set), number);
                number
            }
        };
        sets.insert(Arc::clone(set), number);
        Ok(Some(number))
    }
}
