//! `onPolicyRemoval: cut` for what goes direct and so has no end in the daemon: connections of a
//! network that is bypassed no more, connections that the kernel let go by policy, sockets with a UDP
//! peer that no entry allows any more (T-62).

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use interceptor_common::Namespace;
use ipnet::IpNet;

use super::covered::Whose;
use super::handler::Running;
use super::tenant::Tenant;
use crate::account::{Flag, Record};
use crate::clock;
use crate::decide::host::HostName;
use crate::decide::tier::withdrawn;
use crate::decide::{ClusterName, Flow, Reason};
use crate::kernel::DirectFlow;
use crate::netns::diag::{Connected, Diag, Transport};
use crate::origin::OriginalDst;
use crate::policy::{Enforcement, OnRemoval, Snapshot};
use crate::workloads::cgroup::{Cgroup, Hierarchy};

/// Why in the access log.
type Why = Cow<'static, str>;

/// Ends of direct connections that were cut, until their records come from the kernel.
#[derive(Debug, Clone, Default)]
pub(super) struct Ended(Arc<Mutex<HashMap<(SocketAddr, SocketAddr), Why>>>);

/// Records that never come are forgotten in the end.
const MAX_ENDED: usize = 65_536;

impl Ended {
    fn add(&self, socket: &Connected, why: Why) {
        let mut ended = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if ended.len() >= MAX_ENDED {
            ended.clear();
        }
        ended.insert((socket.local, socket.peer), why);
    }

    fn forget(&self, socket: &Connected) {
        self.take(socket.local, socket.peer);
    }

    /// Why this connection was cut, if it was; says so once.
    pub(super) fn take(&self, local: SocketAddr, peer: SocketAddr) -> Option<Why> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&(local, peer))
    }
}

/// Whether a datagram to `peer` is allowed without anybody having asked for it.
pub(super) fn allows(snapshot: &Snapshot, peer: SocketAddr) -> bool {
    let listed = |(net, port): &(IpNet, u16)| *port == peer.port() && net.contains(&peer.ip());
    !snapshot.refuse_datagrams || snapshot.udp_allowed.iter().any(listed)
}

/// What was in force, and what is in its place.
pub(super) type Replaced = (Arc<Snapshot>, Arc<Snapshot>);

/// Ends the sockets with a UDP peer that was allowed before and is so no more. `replaced` gives by the rules'
/// number whose policy changed. Gives how many.
pub(super) fn datagrams(running: &Running, replaced: &HashMap<u16, Replaced>) -> usize {
    end(running, Transport::Udp, |whose, socket| {
        let (before, after) = replaced.get(&whose.tenant.rules.id)?;
        let gone = allows(before, socket.peer)
            && !allows(after, socket.peer)
            && !whose.tenant.rules.resolvers.contains(&socket.peer);
        gone.then_some(POLICY_REMOVED.into())
    })
}

/// Ends the connections that went direct by `removed` and would not go so now. Gives how many.
pub(super) fn bypassed(running: &Running, removed: IpNet) -> usize {
    let left = running.kernel.tables().bypass_list();
    end(running, Transport::Tcp, |whose, socket| {
        let ip = socket.peer.ip();
        let gone = removed.contains(&ip)
            && !left.iter().any(|net| net.contains(&ip))
            && !whose.tenant.rules.resolvers.contains(&socket.peer);
        gone.then_some(BYPASS_REMOVED.into())
    })
}

/// Ends the connections that the kernel let go by policy and that it does not allow now, where that has them
/// cut. Gives how many.
pub(super) fn direct(running: &Running) -> usize {
    end(running, Transport::Tcp, |whose, socket| {
        let Tenant { rules, sync, .. } = &*whose.tenant;
        let now = rules.policy.current();
        if now.on_removal == OnRemoval::Keep {
            return None;
        }
        let flow = DirectFlow::of(&socket.storage)?;
        let label = running.labels.get(flow.label);
        let told = label.as_ref().and_then(|label| label.shown.as_ref());
        let told = told.filter(|pattern| !pattern.below).map(|pattern| pattern.name.clone());
        let shown = flow.name.and_then(|name| HostName::parse(&name).ok()).or(told);
        let cluster = label.as_ref().and_then(|label| label.cluster.clone()).map(ClusterName);
        let place = Flow { dst: OriginalDst::new(flow.dst), namespace: &rules.namespace };
        let owns = |host: &HostName| sync.owns(host, flow.dst.ip());
        let why = withdrawn(&now.policy, &place, shown.as_ref(), cluster.as_ref(), &owns)?;
        Some(format!("policy_removed{{{why}}}").into())
    })
}

/// Ends the workloads' sockets that `gone` names, and logs each.
fn end(
    running: &Running,
    transport: Transport,
    gone: impl Fn(&Whose, &Connected) -> Option<Why>,
) -> usize {
    let mut count = 0;
    for covered in running.covered.all().values() {
        let (netns, whose) = (&covered.netns, covered.whose());
        // Nothing of it is refused.
        if whose.audited {
            continue;
        }
        let ended = Diag::open(netns).and_then(|diag| {
            let maps = running.kernel.socket_storage();
            let found =
                diag.connected(transport, if transport == Transport::Tcp { &maps } else { &[] })?;
            let found: Vec<_> = found
                .iter()
                .filter(|socket| !is_local(socket))
                .filter_map(|socket| Some((socket, gone(&whose, socket)?)))
                .collect();
            if found.is_empty() {
                return Ok(());
            }
            let cgroups = Covered::new(covered.cgroups(&running.cgroups));
            // In the node's namespace those of cgroups that are gone are anybody's.
            let holds = |cgroup| match covered.pod {
                Some(_) => cgroups.includes(cgroup),
                None => cgroups.holds(cgroup),
            };
            for (socket, why) in found.into_iter().filter(|(one, _)| holds(one.cgroup)) {
                // Before: the kernel's record may come at once.
                running.ended.add(socket, why);
                if let Err(error) = diag.destroy(socket) {
                    running.ended.forget(socket);
                    return Err(error);
                }
                if transport == Transport::Udp {
                    running.ended.forget(socket);
                    running.log.write(record(running, &whose, socket));
                }
                count += 1;
            }
            Ok(())
        });
        if let Err(error) = ended {
            eprintln!(
                "interceptor: cannot cut direct flows in network namespace {}: {}; they go on until \
                 their workload ends",
                netns.label(),
                explained(&error)
            );
        }
    }
    count
}

/// What was cut, for people: nothing where nothing was.
pub(super) fn told(datagrams: usize, direct: usize) -> String {
    let count = |count: usize, what: &str| match count {
        0 => String::new(),
        count => format!("; {count} {what} cut"),
    };
    count(datagrams, "UDP sockets") + &count(direct, "direct connections")
}

fn explained(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::EOPNOTSUPP) => {
            "this kernel cannot end sockets (CONFIG_INET_DIAG_DESTROY)".to_owned()
        }
        _ => error.to_string(),
    }
}

/// Loopback, own addresses included: none of policy's business.
fn is_local(socket: &Connected) -> bool {
    socket.peer.ip().is_loopback() || socket.peer.ip() == socket.local.ip()
}

/// The kernel accounts for TCP only.
fn record(running: &Running, whose: &Whose, socket: &Connected) -> Record {
    let mut record = Record::new(clock::wall(), socket.peer, socket.local);
    record.more.pod.clone_from(&whose.workload.pod);
    record.upstream_cluster = Some(ClusterName::black_hole());
    record.flags = vec![Flag::UH];
    record.reason = Reason::NotRegistered;
    if running.policy.current().enforcement == Enforcement::Strict {
        record.connection_termination_details = Some(POLICY_REMOVED.into());
    }
    record
}

const POLICY_REMOVED: &str = "policy_removed{not_registered}";
const BYPASS_REMOVED: &str = "policy_removed{not_bypassed}";

/// Which cgroups are covered, by number.
pub(super) struct Covered {
    covered: HashSet<u64>,
    /// Every cgroup that there is.
    all: HashSet<u64>,
}

impl Covered {
    pub(super) fn new(cgroups: &[Cgroup]) -> Self {
        let (mut covered, mut all) = (HashSet::new(), HashSet::new());
        for cgroup in cgroups {
            collect(cgroup.path(), &mut covered);
        }
        if let Ok(hierarchy) = Hierarchy::discover() {
            collect(hierarchy.mount_point(), &mut all);
        }
        Self { covered, all }
    }

    /// Whether it is one of them.
    pub(super) fn includes(&self, cgroup: u64) -> bool {
        self.covered.contains(&cgroup)
    }

    /// Whether it is one of them whose key in the kernel's table of namespaces this is.
    pub(super) fn includes_key(&self, key: u64) -> bool {
        self.covered.iter().any(|cgroup| Namespace::by_cgroup(*cgroup) == key)
    }

    /// A socket may outlive its cgroup; one of a cgroup that is gone may have been covered, and is
    /// taken to be.
    fn holds(&self, cgroup: u64) -> bool {
        self.covered.contains(&cgroup) || !self.all.contains(&cgroup)
    }
}

/// The numbers of a cgroup and of those below it.
fn collect(directory: &Path, found: &mut HashSet<u64>) {
    let Ok(meta) = fs::symlink_metadata(directory) else { return };
    if !meta.is_dir() {
        return;
    }
    found.insert(meta.ino());
    let Ok(listed) = fs::read_dir(directory) else { return };
    for entry in listed.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
    {
        collect(&entry.path(), found);
    }
}
