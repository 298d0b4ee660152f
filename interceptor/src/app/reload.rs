//! Reload: files change, the new set is loaded and compiled beside the one in force, and takes its
//! place whole or not at all (T-61, T-62). Connections keep the decision that they got (MESH-20),
//! unless `onPolicyRemoval: cut` ends what is no longer allowed.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use interceptor_common::Settings;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::begin::Others;
use super::handler::Running;
use super::tenant::Rules;
use super::wanted::{caller, default_log, governed, log_settings, stale_for};
use super::{cli, cut};
use crate::admin::report::LastReload;
use crate::clock;
use crate::descriptors;
use crate::memory;
use crate::policy::{
    self, Inventory, LoadErrors, Loaded, Notice, OnRemoval, Snapshot, Sources, Watch,
};

/// Follows the files of one daemon.
pub(super) struct Reloader {
    pub(super) watch: Watch,
    pub(super) sources: Sources,
    pub(super) args: cli::Run,
    pub(super) running: Arc<Running>,
    /// The rules that the policy is a part of.
    pub(super) rules: Arc<Rules>,
    /// What of the settings policy does not change.
    pub(super) settings: Settings,
    /// What is in force.
    pub(super) inventory: Inventory,
    /// What was said already of the set in force.
    pub(super) said: HashSet<String>,
}

/// Why a changed set of files did not become policy.
enum Refused {
    Invalid(LoadErrors),
    Failed(String),
}

impl Reloader {
    /// Reloads whenever files change, for ever.
    pub(super) async fn run(mut self) {
        loop {
            self.watch.changed().await;
            let loaded = self.load().await;
            let applied = match loaded {
                Ok(loaded) => self.apply(loaded).await,
                Err(refused) => Err(refused),
            };
            memory::give_back();
            self.report(applied);
        }
    }

    /// Loads beside the runtime: a large set takes a while.
    async fn load(&self) -> Result<Loaded, Refused> {
        let (sources, before) = (self.sources.clone(), self.inventory.clone());
        let caller = caller(&self.args);
        let load = move || {
            let loaded = policy::load_over(&sources, &caller, &before);
            memory::give_back();
            loaded
        };
        match tokio::task::spawn_blocking(load).await {
            Ok(loaded) => loaded.map_err(Refused::Invalid),
            Err(panic) => Err(Refused::Failed(format!("loading broke off: {panic}"))),
        }
    }

    /// Puts a loaded set in force: all of it or, where something cannot be changed, none.
    async fn apply(&mut self, loaded: Loaded) -> Result<String, Refused> {
        let before = self.running.policy.current();
        let snapshot = Snapshot { generation: before.generation + 1, ..loaded.snapshot };
        let undo = |what: String| {
            if let Err(error) = self.set_kernel(&before) {
                tracing::error!("going back to the policy of before: {error}");
            }
            Refused::Failed(what)
        };
        self.set_kernel(&snapshot).map_err(undo)?;
        let (flag, default) = (self.args.access_log.as_ref(), default_log(&self.args));
        let log = self.running.log.replace(&log_settings(flag, default, &snapshot)).await;
        log.map_err(|error| undo(format!("cannot open the access log: {error}")))?;
        let generation = snapshot.generation;
        let changes = self.inventory.changes(&loaded.inventory);
        self.running.resolver.hold(stale_for(&snapshot), snapshot.dns_refresh);
        let cuts = snapshot.on_removal == OnRemoval::Cut;
        descriptors::keep(snapshot.limits.descriptor_reserve);
        self.running.policy.replace(snapshot);
        let cut = if cuts { self.cut(before).await } else { String::new() };
        self.inventory = loaded.inventory;
        self.say(&loaded.warnings, &loaded.rejected);
        Ok(format!("policy generation {generation}: {changes}{cut}"))
    }

    /// Ends what goes direct to where nothing allows it any more. Proxied connections see to
    /// themselves.
    async fn cut(&self, before: Arc<Snapshot>) -> String {
        let running = Arc::clone(&self.running);
        let id = self.rules.id;
        let cut = move || {
            let replaced = HashMap::from([(id, (before, running.policy.current()))]);
            (cut::datagrams(&running, &replaced), cut::direct(&running))
        };
        match tokio::task::spawn_blocking(cut).await {
            Ok((datagrams, direct)) => cut::told(datagrams, direct),
            Err(panic) => format!("; cutting direct flows broke off: {panic}"),
        }
    }

    /// The tables of the kernel that follow policy.
    fn set_kernel(&self, snapshot: &Snapshot) -> Result<(), String> {
        let settings = governed(self.settings, snapshot, &Others::Forgotten);
        let set = {
            let mut tables = self.running.kernel.tables();
            let all = self.running.covered.all();
            self.rules
                .set_datagrams(snapshot, &mut tables)
                .and_then(|()| tables.set_settings(settings))
                .and_then(|()| {
                    all.iter().try_for_each(|(cookie, covered)| {
                        let audited = covered.whose().audited;
                        let at = covered.doors.addresses();
                        let entry = self.rules.entry(at, snapshot, audited);
                        tables.cover(*cookie, entry)
                    })
                })
        };
        // Where this fails the proxy takes over, with the policy that is about to be in force.
        for tenant in self.running.covered.tenants() {
            if let Err(error) = tenant.sync.apply(snapshot) {
                tracing::error!("{error}");
            }
        }
        set.map_err(|error| error.to_string())
    }

    /// Says what was not said of the set before.
    fn say(&mut self, warnings: &[Notice], rejected: &[Notice]) {
        let now = said(warnings, rejected);
        for text in now.iter().filter(|text| !self.said.contains(*text)) {
            eprintln!("interceptor: {text}");
        }
        self.said = now.into_iter().collect();
    }

    fn report(&self, applied: Result<String, Refused>) {
        let generation = self.running.policy.current().generation;
        let stays = format!("policy generation {generation} stays in force");
        let (accepted, message) = match applied {
            Ok(message) => (true, message),
            Err(Refused::Failed(why)) => (false, format!("{stays}: {why}")),
            Err(Refused::Invalid(errors)) => {
                (false, format!("{stays}: the changed resources cannot be used\n{errors}"))
            }
        };
        eprintln!("interceptor: {message}");
        self.running.reloads[usize::from(!accepted)].fetch_add(1, Ordering::Relaxed);
        self.running.last_reload.store(Some(Arc::new(LastReload {
            at: now(),
            accepted,
            message: message.replace('\n', "; "),
        })));
    }
}

/// What is said of a set that is in force.
pub(super) fn said(warnings: &[Notice], rejected: &[Notice]) -> Vec<String> {
    let warnings = warnings.iter().map(|notice| format!("warning: {notice}"));
    let rejected = rejected.iter().map(|notice| format!("left out: {notice}"));
    warnings.chain(rejected).collect()
}

fn now() -> String {
    let now = OffsetDateTime::from(clock::wall());
    // Only a year beyond 9999 cannot be written so.
    now.replace_nanosecond(0).unwrap_or(now).format(&Rfc3339).unwrap_or_default()
}
