//! The user side of BPF: load, attach, pin, adopt; tables and events. Never decides.

mod btf;
mod direct;
mod events;
mod hints;
mod hooks;
mod interface;
mod object;
mod pinned;
mod pins;
mod probe;
mod sys;
mod tables;
mod target;
mod watch;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::{Mutex, MutexGuard};

use aya::maps::{MapData, RingBuf, SkStorage};
use aya::programs::{
    CgroupSkb, CgroupSock, CgroupSockAddr, CgroupSockopt, Program, ProgramError, SchedClassifier,
    SockOps,
};
use aya::{Ebpf, EbpfLoader};
use interceptor_common::{Handover, maps};
use tokio::net::TcpStream;

pub use direct::{
    DirectFlow, DirectTables, EndpointRow, Held, Inherited, NameRow, PendingFlow, SocketId,
    socket_state,
};
pub use events::{Closed, ClosedTier, EventReader, KernelEvent, Refused, RefusedHello};
pub use hints::HintReader;
pub use hooks::{HOOKS, Hook, Kind, Side};
pub use interface::InterfaceTables;
pub use pinned::{PinnedNamespaces, Standing, standing};
pub use pins::{PinError, Pins};
pub use probe::{KernelVersion, MissingFeature, require_floor, require_interface_hooks};
pub use tables::{RouteEntry, RouteKind, TableError, TableFill, Tables, last_policy};
pub use watch::{Amiss, Repair};

use crate::netns::Gate;
use crate::workloads::cgroup::{Cgroup, CgroupError};

pub use target::Target;

/// Everything that is loaded and attached for one instance.
pub struct Kernel {
    tables: Mutex<Tables>,
    direct: Mutex<DirectTables>,
    interface: Mutex<InterfaceTables>,
    accepted: SkStorage<MapData, Handover>,
    /// Every pinned map, by name.
    maps: BTreeMap<&'static str, OwnedFd>,
    /// Empty from [`Kernel::detach`] or [`Kernel::leave`] on.
    attachments: Mutex<Vec<Attachment>>,
    pins: Pins,
    /// The programs.
    object: Ebpf,
}

/// One program at one cgroup or interface.
#[derive(Debug)]
pub struct Attachment {
    /// Which hook.
    pub hook: &'static Hook,
    /// The cgroup or interface.
    pub target: Target,
    target_id: u64,
    /// The kernel's number of the program.
    pub program_id: u32,
    link: OwnedFd,
}

/// What to load.
#[derive(Debug)]
pub struct Plan<'a> {
    /// The covered cgroups.
    pub workloads: &'a [Cgroup],
    /// The daemon's own cgroup.
    pub daemon: &'a Cgroup,
    /// The daemon's ends of covered namespaces' veths.
    pub gates: &'a [Gate],
    /// Whether the programs log each decision (`--bpf-log`).
    pub log: bool,
    /// A daemon that lives has just handed over: what it let go direct stays so until
    /// [`crate::tiers::Sync`] replaces it.
    pub succeeds: bool,
}

/// Why the kernel side is not in place. The daemon then does not start: it never runs with a layer
/// silently absent (T-65).
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// The kernel lacks something.
    #[error(transparent)]
    Missing(#[from] MissingFeature),
    /// Built without its other half.
    #[error("this binary was {0}", object::MISSING)]
    NoObject,
    /// Not enough privilege.
    #[error("loading BPF programs needs root (CAP_BPF, CAP_NET_ADMIN and CAP_SYS_ADMIN): {0}")]
    Privilege(String),
    /// Loading failed otherwise.
    #[error("cannot load the BPF programs: {0}")]
    Load(String),
    /// Attaching failed otherwise.
    #[error("cannot attach {hook} to {target}: {source}")]
    Attach {
        /// The hook's name.
        hook: &'static str,
        /// The cgroup or interface.
        target: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// bpffs.
    #[error(transparent)]
    Pin(#[from] PinError),
    /// A table.
    #[error(transparent)]
    Table(#[from] TableError),
    /// A cgroup.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
}

/// Programs that the kernel has taken, with the maps that they use. Nothing is attached, and no table
/// written.
pub struct Programs {
    object: Ebpf,
    pins: Pins,
    /// Nothing of an earlier run is attached.
    fresh: bool,
}

impl Programs {
    /// Loads every program, with the maps that an earlier run of `name` left pinned, or new ones.
    /// `log`: the programs log each decision (`--bpf-log`).
    ///
    /// # Errors
    /// [`KernelError`]; nothing new stays pinned then.
    pub fn load(name: &str, log: bool) -> Result<Self, KernelError> {
        let object = object::embedded().ok_or(KernelError::NoObject)?;
        let version = probe::require_floor()?;
        let pins = Pins::of(name);
        let fresh = pins.link_names().is_empty();
        let load = || -> Result<Ebpf, KernelError> {
            pins.prepare()?;
            let mut ebpf = load_object(object, &pins, version, log)?;
            load_programs(&mut ebpf)?;
            Ok(ebpf)
        };
        let object = load().inspect_err(|_| clean_up(&pins, fresh))?;
        Ok(Self { object, pins, fresh })
    }
}

/// After a failure: nothing of an earlier run depends on what was pinned meanwhile, if there was none.
fn clean_up(pins: &Pins, fresh: bool) {
    if fresh {
        let _ = pins.remove();
    }
}

impl Kernel {
    /// Takes over what an earlier run left attached, attaches the rest, pins everything. `prepare`
    /// fills the tables before the first hook can run. Nobody else may write the tables any more.
    ///
    /// # Errors
    /// [`KernelError`]; nothing new stays attached then.
    pub fn attach(
        programs: Programs,
        plan: &Plan<'_>,
        prepare: impl FnOnce(&mut Tables) -> Result<(), TableError>,
    ) -> Result<(Self, EventReader, HintReader), KernelError> {
        let Programs { object, pins, fresh } = programs;
        let attached = Self::attach_pinned(plan, prepare, object, &pins);
        attached.inspect_err(|_| clean_up(&pins, fresh))
    }

    fn attach_pinned(
        plan: &Plan<'_>,
        prepare: impl FnOnce(&mut Tables) -> Result<(), TableError>,
        mut ebpf: Ebpf,
        pins: &Pins,
    ) -> Result<(Self, EventReader, HintReader), KernelError> {
        let mut tables = Tables::take(&mut ebpf)?;
        let mut direct = DirectTables::take(&mut ebpf)?;
        if !plan.succeeds {
            // What an earlier run let go direct, this one has not judged.
            direct.clear()?;
        }
        let mut interface = InterfaceTables::take(&mut ebpf)?;
        interface.set(plan.gates)?;
        prepare(&mut tables)?;
        let attachments = attach_all(&ebpf, pins, plan)?;
        pins.remove_other_maps()?;
        let accepted =
            SkStorage::try_from(take(&mut ebpf, maps::ACCEPTED)?).map_err(load_failed)?;
        let open = |name| Ok((name, sys::open_pinned(&pins.maps().join(name))?));
        let maps =
            maps::ALL.into_iter().map(open).collect::<io::Result<_>>().map_err(load_failed)?;
        let events = EventReader::new(
            RingBuf::try_from(take(&mut ebpf, maps::FLOWS)?).map_err(load_failed)?,
            RingBuf::try_from(take(&mut ebpf, maps::REFUSALS)?).map_err(load_failed)?,
        )
        .map_err(load_failed)?;
        let hints = RingBuf::try_from(take(&mut ebpf, maps::HINTS)?).map_err(load_failed)?;
        let hints = HintReader::new(hints).map_err(load_failed)?;
        if plan.log {
            events::forward_bpf_log(&mut ebpf).map_err(KernelError::Load)?;
        }
        let (tables, direct) = (Mutex::new(tables), Mutex::new(direct));
        let interface = Mutex::new(interface);
        Ok((
            Self {
                tables,
                direct,
                interface,
                accepted,
                maps,
                attachments: Mutex::new(attachments),
                pins: pins.clone(),
                object: ebpf,
            },
            events,
            hints,
        ))
    }

    /// The tables, for reading and changing.
    pub fn tables(&self) -> MutexGuard<'_, Tables> {
        self.tables.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// The tables of what goes direct.
    pub fn direct(&self) -> MutexGuard<'_, DirectTables> {
        self.direct.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// The tables of the interface layer.
    pub fn interface(&self) -> MutexGuard<'_, InterfaceTables> {
        self.interface.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Where the workload behind an accepted connection was going; `None` if the kernel handed
    /// nothing over: then nobody may guess (T-11).
    pub fn handover(&self, accepted: &TcpStream) -> Option<Handover> {
        self.accepted.get(accepted, 0).ok()
    }

    /// The maps in which workloads' sockets keep what [`DirectFlow::of`] reads.
    pub fn socket_storage(&self) -> [BorrowedFd<'_>; 2] {
        // All maps were opened at load.
        [maps::SOCKETS, maps::SHOWN].map(|name| self.maps[name].as_fd())
    }

    /// What is attached where.
    pub fn attachments(&self) -> MutexGuard<'_, Vec<Attachment>> {
        self.attachments.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Leaves everything as it is, to the daemon that goes on: from here on nothing is repaired or
    /// detached by this one.
    pub fn leave(&self) {
        self.attachments().clear();
    }

    /// Whether this daemon looks after it, and writes its tables: neither detached nor left.
    pub fn is_ours(&self) -> bool {
        !self.attachments().is_empty()
    }

    /// Detaches and removes everything.
    ///
    /// # Errors
    /// A pin could not be removed.
    pub fn detach(&self) -> Result<(), PinError> {
        // In the opposite order of attaching: what redirects goes first.
        let attachments = std::mem::take(&mut *self.attachments());
        for attachment in attachments.iter().rev() {
            if let Err(error) = sys::link_detach(attachment.link.as_fd()) {
                tracing::warn!("detach {}: {error}", attachment.hook.name);
            }
        }
        self.pins.remove()
    }
}

fn load_object(
    object: &[u8],
    pins: &Pins,
    version: KernelVersion,
    log: bool,
) -> Result<Ebpf, KernelError> {
    const DEBUG: u8 = 4;
    const SILENT: u8 = 0;
    let level = if log { DEBUG } else { SILENT };
    let has_set_retval = u8::from(version >= KernelVersion(5, 18));
    let has_skb_netns = u8::from(version >= KernelVersion(6, 12));
    // 0: this kernel does not say, and lines of failed direct connections have no reason.
    let sk_err_offset = btf::offset_of("sock", "sk_err").unwrap_or(0);
    let mut loader = EbpfLoader::new();
    loader
        .override_global("AYA_LOG_LEVEL", &level, false)
        .override_global("HAS_SET_RETVAL", &has_set_retval, true)
        .override_global("HAS_SKB_NETNS", &has_skb_netns, true)
        .override_global("SK_ERR_OFFSET", &sk_err_offset, true);
    for name in maps::ALL {
        loader.map_pin_path(name, pins.maps().join(name));
    }
    loader.load(object).map_err(|error| {
        let chain = chain(&error);
        if chain.contains("Operation not permitted") || chain.contains("Permission denied") {
            KernelError::Privilege(chain)
        } else {
            KernelError::Load(chain)
        }
    })
}

fn load_programs(ebpf: &mut Ebpf) -> Result<(), KernelError> {
    let mut loaded = BTreeSet::new();
    for hook in HOOKS {
        if !loaded.insert(hook.program) {
            continue;
        }
        let program = ebpf.program_mut(hook.program).ok_or_else(|| {
            KernelError::Load(format!("the object has no program {}", hook.program))
        })?;
        load_program(program, hook.kind).map_err(|error| probe::explain_load(hook, &error))?;
    }
    Ok(())
}

fn load_program(program: &mut Program, kind: Kind) -> Result<(), ProgramError> {
    match kind {
        Kind::SockAddr => <&mut CgroupSockAddr>::try_from(program)?.load(),
        Kind::Sockopt => <&mut CgroupSockopt>::try_from(program)?.load(),
        Kind::Sock => <&mut CgroupSock>::try_from(program)?.load(),
        Kind::SockOps => <&mut SockOps>::try_from(program)?.load(),
        Kind::Skb => <&mut CgroupSkb>::try_from(program)?.load(),
        Kind::Classifier => <&mut SchedClassifier>::try_from(program)?.load(),
    }
}

/// Attaches every hook to its targets. A pinned link of an earlier run gets the new program in
/// place; what is pinned for targets that are no longer covered goes afterwards.
fn attach_all(ebpf: &Ebpf, pins: &Pins, plan: &Plan<'_>) -> Result<Vec<Attachment>, KernelError> {
    let mut attachments = Vec::new();
    let mut wanted = BTreeSet::new();
    for hook in HOOKS {
        for target in Target::all(hook, plan) {
            let attachment = attach(ebpf, pins, hook, &target)?;
            wanted.insert(pin_name(hook, attachment.target_id));
            attachments.push(attachment);
        }
    }
    for stale in pins.link_names().into_iter().filter(|name| !wanted.contains(name)) {
        let _ = std::fs::remove_file(pins.links().join(stale));
    }
    Ok(attachments)
}

/// What the link of a hook at a cgroup or interface is pinned as.
fn pin_name(hook: &Hook, target_id: u64) -> String {
    format!("{}-{target_id}", hook.name)
}

fn attach(
    ebpf: &Ebpf,
    pins: &Pins,
    hook: &'static Hook,
    target: &Target,
) -> Result<Attachment, KernelError> {
    let label = target.label();
    let failed = |source| KernelError::Attach { hook: hook.name, target: label.clone(), source };
    let program = ebpf
        .program(hook.program)
        .ok_or_else(|| KernelError::Load(format!("the object has no program {}", hook.program)))?
        .fd()
        .map_err(load_failed)?
        .as_fd();
    let target_id = target.id()?;
    let pin = pins.links().join(pin_name(hook, target_id));
    let link = match adopt(&pin, program, target_id) {
        Some(link) => link,
        None => {
            let link = target.attach(program, hook).map_err(|error| {
                probe::explain_attach(hook, &error)
                    .map_or_else(|| failed(error), KernelError::Missing)
            })?;
            sys::pin(link.as_fd(), &pin).map_err(failed)?;
            link
        }
    };
    let program_id = sys::link_info(link.as_fd()).map_err(failed)?.program_id;
    Ok(Attachment { hook, target: target.clone(), target_id, program_id, link })
}

/// The pinned link, with `program` put in place of the old one; `None` (and no pin) if there is
/// none or it no longer holds that target.
fn adopt(pin: &Path, program: BorrowedFd<'_>, target: u64) -> Option<OwnedFd> {
    let link = sys::open_pinned(pin).ok()?;
    let holds = sys::link_info(link.as_fd()).is_ok_and(|info| info.target() == target);
    if holds && sys::link_update(link.as_fd(), program).is_ok() {
        return Some(link);
    }
    let _ = std::fs::remove_file(pin);
    None
}

fn take(ebpf: &mut Ebpf, name: &'static str) -> Result<aya::maps::Map, KernelError> {
    ebpf.take_map(name).ok_or_else(|| KernelError::Load(format!("the object has no map {name}")))
}

/// The same, as the kind of map that it is.
fn take_typed<T>(ebpf: &mut Ebpf, name: &'static str) -> Result<T, KernelError>
where
    T: TryFrom<aya::maps::Map, Error = aya::maps::MapError>,
{
    Ok(T::try_from(take(ebpf, name)?).map_err(tables::at(name))?)
}

fn load_failed(error: impl std::error::Error) -> KernelError {
    KernelError::Load(chain(&error))
}

/// An error with all its causes, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = error.source();
    }
    text
}

/// Both ends of a handed-over connection: where it was going, and the workload's own end.
pub fn ends(handover: &Handover) -> (SocketAddr, SocketAddr) {
    (events::socket_addr(&handover.dst), events::socket_addr(&handover.src))
}
