//! What the control socket can ask of a running interceptor.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use arc_swap::ArcSwapOption;
use interceptor_common::Finding;
use ipnet::IpNet;
use tokio::sync::{mpsc, oneshot};

use super::covered::{CoveredNamespace, Registry};
use super::cut::{self, Ended};
use super::sandboxes::Sandboxes;
use super::watchdog::Repairs;
use crate::account::{AccessLog, Folds};
use crate::act::door::Tunnels;
use crate::admin::report::{
    Attachment, Connections, LastReload, Limit, Namespace as NamespaceReport, PodRecords, Reloads,
    StatusReport, Table, Tiers, Uncovered,
};
use crate::admin::{Covering, ExecInfo, Handler, Offer, OfferedNamespace, Sandbox};
use crate::admit::Rooms;
use crate::descriptors;
use crate::drain::Drainer;
use crate::kernel::Kernel;
use crate::policy::{Enforcement, OnLoss, OnRemoval, Outbound, Store};
use crate::resolve::Resolver;
use crate::tiers::{Commons, Labels};
use crate::workloads::PodIdentity;
use crate::workloads::cgroup::Cgroup;

/// The parts that status reads and the control socket changes.
pub(super) struct Running {
    pub(super) name: String,
    pub(super) started: Instant,
    pub(super) kernel: Arc<Kernel>,
    /// What the daemon itself goes by.
    pub(super) policy: Arc<Store>,
    pub(super) log: AccessLog,
    pub(super) folds: Arc<Folds>,
    pub(super) rooms: Arc<Rooms>,
    pub(super) covered: Arc<Registry>,
    /// Held by who changes where the interface layer stands.
    pub(super) at_gates: tokio::sync::Mutex<()>,
    /// The covered cgroups.
    pub(super) cgroups: Vec<Cgroup>,
    /// Direct connections that were cut.
    pub(super) ended: Ended,
    /// What the watchdog put back.
    pub(super) repairs: Repairs,
    pub(super) resolver: Arc<Resolver>,
    pub(super) resolvers: Vec<SocketAddr>,
    /// Where `exec` puts commands, or why it puts none.
    pub(super) exec: Result<ExecInfo, String>,
    /// How the last change of the policy files went.
    pub(super) last_reload: ArcSwapOption<LastReload>,
    /// How many were accepted, and refused.
    pub(super) reloads: [AtomicU64; 2],
    /// What the policies in the tables of direct traffic have in common.
    pub(super) commons: Arc<Commons>,
    /// What direct flows are called.
    pub(super) labels: Arc<Labels>,
    /// Networks that the command line bypasses.
    pub(super) bypass: Vec<IpNet>,
    /// Tells the daemon to lay everything down, or why nobody can take its place.
    pub(super) successor: Result<mpsc::Sender<Successor>, String>,
    /// Ends connections, once another daemon has taken over.
    pub(super) drainer: Drainer,
    /// What the CNI plugin told of; none where no pods are covered.
    pub(super) sandboxes: Option<Arc<Sandboxes>>,
    /// As [`Setup::tunnels`](super::begin::Setup).
    pub(super) tunnels: Option<Arc<Tunnels>>,
}

/// Answered when everything is laid down.
pub(super) type Successor = oneshot::Sender<()>;

const LEFT: &str = "another interceptor has taken over just now; ask again";

impl Handler for Running {
    fn status(&self) -> StatusReport {
        let snapshot = self.policy.current();
        let tables = self.kernel.tables();
        let counters = tables.counters();
        let count = |finding: Finding| counters.get(finding.label()).copied().unwrap_or(0);
        let tiers = Tiers {
            bypass: count(Finding::Bypassed),
            direct: count(Finding::Direct),
            name: count(Finding::NameAsked),
            proxy: count(Finding::Redirected),
        };
        let all = self.covered.all();
        let rooms: Vec<_> = all.values().map(|covered| Arc::clone(&covered.room)).collect();
        let reloads = |which: usize| self.reloads[which].load(Ordering::Relaxed);
        StatusReport {
            name: self.name.clone(),
            pid: std::process::id(),
            uptime_s: self.started.elapsed().as_secs(),
            enforcement: match snapshot.enforcement {
                Enforcement::Strict => "strict",
                Enforcement::Istio => "istio",
            }
            .into(),
            outbound: match snapshot.outbound {
                Outbound::AllowAny => "ALLOW_ANY",
                Outbound::RegistryOnly => "REGISTRY_ONLY",
                Outbound::AllowAnyDynamicDns => "ALLOW_ANY_DYNAMIC_DNS",
            }
            .into(),
            generation: snapshot.generation,
            fast_path: snapshot.fast_path && self.commons.is_enabled(),
            on_daemon_loss: match snapshot.on_loss {
                OnLoss::DirectTier => "direct-tier",
                OnLoss::Closed => "closed",
            }
            .into(),
            repairs: self.repairs.report(),
            tiers,
            why_proxy: self.why_proxy(),
            last_reload: self.last_reload.load().as_deref().cloned(),
            gateway: None,
            attachments: self
                .kernel
                .attachments()
                .iter()
                .map(|attachment| Attachment {
                    hook: attachment.hook.name.into(),
                    target: attachment.target.label(),
                    program_id: attachment.program_id,
                    pinned: true,
                })
                .collect(),
            namespaces: all.values().map(|covered| namespace(covered)).collect(),
            uncovered: self
                .covered
                .uncovered()
                .iter()
                .map(|(pod, why)| Uncovered { pod: pod.clone(), why: why.clone() })
                .collect(),
            tables: tables
                .fill()
                .into_iter()
                .chain(self.kernel.direct().fill())
                .chain(self.kernel.interface().fill())
                .map(|fill| Table {
                    name: fill.name.into(),
                    entries: fill.entries as u64,
                    capacity: fill.capacity as u64,
                })
                .collect(),
            counters: counters.into_iter().map(|(name, count)| (name.into(), count)).collect(),
            connections: Connections {
                active: self.rooms.active(),
                total: self.rooms.total(),
                accept_failures: self.rooms.accept_failures(),
            },
            limits: self
                .rooms
                .used(&snapshot.limits, rooms.iter(), descriptors::open())
                .map(|used| Limit {
                    name: used.limit.label().into(),
                    now: used.now,
                    most: used.most,
                    refused: used.refused,
                })
                .into(),
            egress_proxies: self
                .covered
                .all()
                .values()
                .flat_map(|covered| covered.site.load().outbound.proxies.report())
                .collect(),
            reloads: Reloads { accepted: reloads(0), refused: reloads(1) },
            records: self
                .log
                .records()
                .into_iter()
                .filter(|(_, count)| *count > 0)
                .map(|(reason, count)| (reason.into(), count))
                .collect(),
            pods: self.log.records_by_pod().into_iter().map(pod_records).collect(),
            access_log_dropped: self.log.dropped(),
            bypass: tables.bypass_list().iter().map(ToString::to_string).collect(),
            resolvers: self.resolvers.iter().map(ToString::to_string).collect(),
        }
    }

    fn bypass_add(&self, net: IpNet) -> Result<(), String> {
        self.kernel.is_ours().then_some(()).ok_or(LEFT)?;
        self.kernel.tables().bypass_add(net).map_err(|error| error.to_string())
    }

    fn bypass_del(&self, net: IpNet) -> Result<(), String> {
        self.kernel.is_ours().then_some(()).ok_or(LEFT)?;
        let removed = self.kernel.tables().bypass_del(net);
        match removed {
            Ok(true) => {
                if self.policy.current().on_removal == OnRemoval::Cut {
                    let count = cut::bypassed(self, net);
                    eprintln!(
                        "interceptor: {net} is bypassed no more: {count} direct connections cut"
                    );
                }
                Ok(())
            }
            Ok(false) => {
                Err(format!("{net} is not bypassed; `interceptor bypass list` shows what is"))
            }
            Err(error) => Err(error.to_string()),
        }
    }

    fn bypass_list(&self) -> Vec<IpNet> {
        self.kernel.tables().bypass_list()
    }

    fn exec_info(&self) -> Result<ExecInfo, String> {
        self.exec.clone()
    }

    fn cover(&self, sandbox: &Sandbox) -> Result<Covering, String> {
        let sandboxes = self.sandboxes.as_ref().ok_or_else(|| sandbox.covered_by_no_agent())?;
        sandboxes.put(sandbox.clone());
        if self.covered.all().contains_key(&sandbox.cookie) {
            return Ok(Covering::Covered);
        }
        let known = self.kernel.tables().namespace(sandbox.cookie);
        Ok(match known.is_some_and(|known| known.is_exempt()) {
            true => Covering::Exempt,
            false => Covering::NotYet(
                "the agent has not heard of the pod from the API server yet, or prepares its policy"
                    .to_owned(),
            ),
        })
    }

    fn offer(&self) -> Result<(Offer, Vec<OwnedFd>), String> {
        if let Err(why) = &self.successor {
            return Err(why.clone());
        }
        let (mut namespaces, mut fds) = (Vec::new(), Vec::new());
        for covered in self.covered.all().values() {
            let CoveredNamespace { netns, doors, .. } = &**covered;
            let failed = |error| format!("network namespace {}: {error}", netns.label());
            let (v4, v6) = doors.share().map_err(failed)?;
            namespaces.push(OfferedNamespace {
                label: netns.label().into(),
                path: netns.opened_as().to_owned(),
                v4: v4.len(),
                v6: v6.is_some(),
            });
            fds.push(netns.try_clone_fd().map_err(failed)?);
            fds.extend(v4.into_iter().chain(v6));
        }
        let mut added = self.bypass_list();
        added.retain(|network| !self.bypass.contains(network));
        let bypass = added.iter().map(ToString::to_string).collect();
        Ok((Offer { pid: std::process::id(), namespaces, bypass }, fds))
    }

    fn lay_down(&self) -> Result<(), String> {
        let daemon = self.successor.as_ref().map_err(String::clone)?;
        let (successor, laid_down) = oneshot::channel();
        let told = daemon.blocking_send(successor).is_ok();
        let done = told && laid_down.blocking_recv().is_ok();
        done.then_some(()).ok_or_else(|| "it ends, or another one has taken over already".into())
    }
}

impl Running {
    /// Why connections came to the proxy, of all policies together.
    fn why_proxy(&self) -> BTreeMap<String, u64> {
        let mut all = BTreeMap::new();
        for tenant in self.covered.tenants() {
            for (why, count) in tenant.sync.fallbacks().counts() {
                *all.entry(why.into()).or_default() += count;
            }
        }
        all
    }
}

fn pod_records((pod, records): (Arc<PodIdentity>, Vec<(&'static str, u64)>)) -> PodRecords {
    PodRecords {
        namespace: pod.namespace.to_string(),
        name: pod.name.to_string(),
        service_account: pod.service_account.to_string(),
        records: records.into_iter().map(|(why, count)| (why.into(), count)).collect(),
    }
}

fn namespace(covered: &CoveredNamespace) -> NamespaceReport {
    let CoveredNamespace { netns, doors, ways, limits, .. } = covered;
    let (at, ways) = (doors.addresses(), ways.load());
    NamespaceReport {
        interfaces: ways.gates.iter().map(|gate| gate.name.clone()).collect(),
        gaps: ways.gaps.clone(),
        limits: limits.clone(),
        label: netns.label().into(),
        mode: if covered.whose().audited { "audit" } else { "enforce" }.into(),
        cookie: netns.cookie(),
        listener_v4: (at.port_v4 != 0)
            .then(|| format!("127.0.0.1-{}:{}", at.v4_listeners, at.port_v4)),
        listener_v6: (at.port_v6 != 0).then(|| format!("[::1]:{}", at.port_v6)),
    }
}

/// What commands under this interceptor must find empty.
pub(super) fn hidden() -> Vec<PathBuf> {
    vec![PathBuf::from(crate::admin::DIR)]
}
