//! What `status` and `metrics` hear of a gateway, where it has a name.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use arc_swap::ArcSwapOption;
use ipnet::IpNet;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::task::JoinHandle;

use crate::admin::report::{Connections, GatewayState, LastReload, Limit, Reloads, StatusReport};
use crate::admin::{self, AdminError, ExecInfo, Handler, Offer, Server};
use crate::clock;
use crate::conn::Site;
use crate::descriptors;
use crate::gateway::{Front, Gateway, Shared};
use crate::policy::{Enforcement, Outbound, Snapshot};

/// Which form of a gateway it is.
pub(super) enum Role {
    /// Nodes bring it streams, to where it listens.
    Nodes(Arc<Gateway>, String),
    /// It is dialled.
    Front(Arc<Front>),
}

/// A gateway as it is seen from outside.
pub(super) struct Watched {
    pub(super) name: String,
    started: Instant,
    shared: Shared,
    resolvers: Vec<String>,
    role: Role,
    reloads: [AtomicU64; 2],
    last_reload: ArcSwapOption<LastReload>,
}

const NO_COVER: &str = "it is a gateway, which covers nothing";

impl Watched {
    pub(super) fn new(name: String, shared: Shared, resolvers: Vec<String>, role: Role) -> Self {
        let (reloads, last_reload) = (Default::default(), ArcSwapOption::empty());
        Self { name, started: Instant::now(), shared, resolvers, role, reloads, last_reload }
    }

    /// Notes how a change of the files went.
    pub(super) fn reloaded(&self, accepted: bool, message: &str) {
        let at = OffsetDateTime::from(clock::wall()).format(&Rfc3339).unwrap_or_default();
        let last = LastReload { at, accepted, message: message.trim().to_owned() };
        self.last_reload.store(Some(Arc::new(last)));
        self.reloads[usize::from(!accepted)].fetch_add(1, Ordering::Relaxed);
    }

    /// Says that a change of the files did not become policy.
    pub(super) fn stays(&self, why: &impl std::fmt::Display) {
        let why = why.to_string();
        let gap = if why.contains('\n') { "\n" } else { " " };
        eprintln!("interceptor: the policy before stays in force:{gap}{why}");
        self.reloaded(false, &why);
    }

    /// Answers on the control socket, if the gateway has a name for it.
    ///
    /// # Errors
    /// Somebody has the name, or the socket cannot be made.
    pub(super) fn open(self: &Arc<Self>) -> Result<Option<JoinHandle<()>>, AdminError> {
        if self.name.is_empty() {
            return Ok(None);
        }
        let server = Server::bind(Path::new(admin::DIR), &self.name)?;
        Ok(Some(tokio::spawn(server.serve(Arc::clone(self) as _))))
    }

    fn sites(&self) -> Vec<Site> {
        match &self.role {
            Role::Nodes(gateway, _) => gateway.policies().sites(),
            Role::Front(front) => vec![front.site().clone()],
        }
    }

    fn policy(&self) -> Arc<Snapshot> {
        match &self.role {
            Role::Nodes(gateway, _) => Arc::new(gateway.policies().general()),
            Role::Front(front) => front.site().policy.current(),
        }
    }
}

impl Handler for Watched {
    fn status(&self) -> StatusReport {
        let (snapshot, sites) = (self.policy(), self.sites());
        let rooms: Vec<_> = sites.iter().map(|site| Arc::clone(&site.room)).collect();
        let Shared { rooms: all, log, .. } = &self.shared;
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
            last_reload: self.last_reload.load().as_deref().cloned(),
            gateway: Some(match &self.role {
                Role::Nodes(gateway, at) => GatewayState {
                    listens: vec![at.clone()],
                    nodes: Some(gateway.nodes.load().len() as u64),
                    connected: Some(gateway.connected()),
                },
                Role::Front(front) => GatewayState {
                    listens: front.listens().iter().map(ToString::to_string).collect(),
                    ..GatewayState::default()
                },
            }),
            connections: Connections {
                active: all.active(),
                total: all.total(),
                accept_failures: all.accept_failures(),
            },
            limits: all
                .used(&snapshot.limits, rooms.iter(), descriptors::open())
                .map(|used| Limit {
                    name: used.limit.label().into(),
                    now: used.now,
                    most: used.most,
                    refused: used.refused,
                })
                .into(),
            egress_proxies: sites.iter().flat_map(|site| site.outbound.proxies.report()).collect(),
            reloads: Reloads { accepted: reloads(0), refused: reloads(1) },
            records: log
                .records()
                .into_iter()
                .filter(|(_, count)| *count > 0)
                .map(|(reason, count)| (reason.into(), count))
                .collect(),
            access_log_dropped: log.dropped(),
            resolvers: self.resolvers.clone(),
            ..StatusReport::default()
        }
    }

    fn bypass_add(&self, _: IpNet) -> Result<(), String> {
        Err(NO_COVER.into())
    }

    fn bypass_del(&self, _: IpNet) -> Result<(), String> {
        Err(NO_COVER.into())
    }

    fn bypass_list(&self) -> Vec<IpNet> {
        Vec::new()
    }

    fn exec_info(&self) -> Result<ExecInfo, String> {
        Err(NO_COVER.into())
    }

    fn offer(&self) -> Result<(Offer, Vec<OwnedFd>), String> {
        Err("a gateway hands nothing over: start the new one beside it, and end this one".into())
    }

    fn lay_down(&self) -> Result<(), String> {
        Err(NO_COVER.into())
    }
}
