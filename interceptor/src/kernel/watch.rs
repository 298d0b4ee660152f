//! Looking after what is attached and pinned: whoever has the privilege can take it away, and then it
//! is put back (T-15).

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use super::{Attachment, Kernel, Target, attach, pin_name, sys};

/// Something that was not as the daemon had left it.
#[derive(Debug)]
pub struct Repair {
    /// `hook connect4 of cgroup PATH`, `map SOCKETS`.
    pub what: String,
    /// What was wrong with it.
    pub amiss: Amiss,
    /// Whether it is in order again.
    pub result: Result<(), String>,
}

/// What can be wrong with an attachment or a map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Amiss {
    /// The link holds nothing any more.
    Detached,
    /// The link runs another program.
    OtherProgram,
    /// The cgroup was removed, and another one made in its place.
    CgroupRemade,
    /// The cgroup is gone.
    CgroupGone,
    /// It would not outlive the daemon.
    Unpinned,
}

impl fmt::Display for Amiss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Detached => "was detached",
            Self::OtherProgram => "was given another program",
            Self::CgroupRemade => "was lost: the cgroup was removed and made anew",
            Self::CgroupGone => "is gone with its cgroup",
            Self::Unpinned => "was unpinned",
        })
    }
}

impl Amiss {
    /// Whether connections may have been made meanwhile that no hook saw.
    pub fn was_open(self) -> bool {
        matches!(self, Self::Detached | Self::OtherProgram | Self::CgroupRemade)
    }
}

impl Kernel {
    /// Looks at every attachment and pin, and puts back what is not there. Nothing is done once
    /// [`Kernel::detach`] has begun, or after [`Kernel::leave`].
    pub fn repair(&self) -> Vec<Repair> {
        let mut repairs = Vec::new();
        // Held to the end: what `detach` takes away is not put back.
        let mut attachments = self.attachments();
        if attachments.is_empty() {
            return repairs;
        }
        for attachment in attachments.iter_mut() {
            let Some(amiss) = self.amiss(attachment) else { continue };
            let of = match &attachment.target {
                Target::Cgroup(cgroup) => format!("cgroup {}", cgroup.path().display()),
                interface => interface.label(),
            };
            let what = format!("hook {} of {of}", attachment.hook.name);
            let result = self.put_back(attachment, amiss);
            repairs.push(Repair { what, amiss, result });
        }
        for (name, map) in &self.maps {
            let pin = self.pins.maps().join(name);
            if !is_pinned(map.as_fd(), &pin) {
                let result = self.pin(map.as_fd(), &pin);
                repairs.push(Repair {
                    what: format!("map {name}"),
                    amiss: Amiss::Unpinned,
                    result,
                });
            }
        }
        repairs
    }

    fn amiss(&self, attachment: &Attachment) -> Option<Amiss> {
        // `set_gates` hears of it.
        if attachment.target.is_gone_interface() {
            return None;
        }
        let Ok(target) = attachment.target.id() else { return Some(Amiss::CgroupGone) };
        if target != attachment.target_id {
            return Some(Amiss::CgroupRemade);
        }
        match sys::link_info(attachment.link.as_fd()) {
            Ok(info) if info.target() != target => Some(Amiss::Detached),
            Ok(info) if info.program_id != attachment.program_id => Some(Amiss::OtherProgram),
            Ok(_) => {
                let pin = self.pins.links().join(pin_name(attachment.hook, target));
                (!is_pinned(attachment.link.as_fd(), &pin)).then_some(Amiss::Unpinned)
            }
            Err(_) => Some(Amiss::Detached),
        }
    }

    fn put_back(&self, attachment: &mut Attachment, amiss: Amiss) -> Result<(), String> {
        match amiss {
            Amiss::CgroupGone => Err("one that is made at its path will be covered".into()),
            Amiss::Unpinned => {
                let pin = self.pins.links().join(pin_name(attachment.hook, attachment.target_id));
                self.pin(attachment.link.as_fd(), &pin)
            }
            Amiss::Detached | Amiss::OtherProgram | Amiss::CgroupRemade => {
                let before = pin_name(attachment.hook, attachment.target_id);
                self.pins.prepare().map_err(|error| error.to_string())?;
                *attachment = attach(&self.object, &self.pins, attachment.hook, &attachment.target)
                    .map_err(|error| error.to_string())?;
                if pin_name(attachment.hook, attachment.target_id) != before {
                    let _ = std::fs::remove_file(self.pins.links().join(before));
                }
                Ok(())
            }
        }
    }

    /// Pins `object`, in the place of whatever is pinned there.
    fn pin(&self, object: BorrowedFd<'_>, path: &Path) -> Result<(), String> {
        self.pins.prepare().map_err(|error| error.to_string())?;
        let _ = std::fs::remove_file(path);
        sys::pin(object, path).map_err(|error| error.to_string())
    }
}

/// Whether `object` is what is pinned at `path`.
fn is_pinned(object: BorrowedFd<'_>, path: &Path) -> bool {
    let pinned = sys::open_pinned(path).and_then(|pinned| sys::object_id(pinned.as_fd()));
    pinned.is_ok_and(|pinned| sys::object_id(object).is_ok_and(|own| own == pinned))
}
