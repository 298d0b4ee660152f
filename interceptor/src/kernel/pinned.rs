//! The table of namespaces as a process finds it that is not the daemon: a CNI plugin, say. And whether
//! the hooks that read it are in effect where pods are.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use aya::maps::{HashMap, Map, MapData, MapError, MapInfo};
use aya::programs::{ProgramError, loaded_programs};
use interceptor_common::{Namespace, maps};

use super::tables::{at, was_there};
use super::{HOOKS, Hook, Pins, Side, TableError, sys};

/// An instance's table of namespaces, as it is pinned.
pub struct PinnedNamespaces {
    map: HashMap<MapData, u64, Namespace>,
    id: u32,
}

impl PinnedNamespaces {
    /// Opens it; `None` where none is pinned in this version's form: no daemon of this version was
    /// there, or its pins were removed.
    ///
    /// # Errors
    /// No privilege; or what is pinned there is something else.
    pub fn open(pins: &Pins) -> Result<Option<Self>, TableError> {
        let path = pins.maps().join(maps::NAMESPACES);
        if !path.exists() {
            return Ok(None);
        }
        let open = || {
            let id = MapInfo::from_pin(&path)?.id();
            let map = HashMap::try_from(Map::HashMap(MapData::from_pin(&path)?))?;
            Ok(Self { map, id })
        };
        open().map(Some).map_err(at(maps::NAMESPACES))
    }

    /// What is known of a namespace.
    ///
    /// # Errors
    /// The kernel's.
    pub fn get(&self, cookie: u64) -> Result<Option<Namespace>, TableError> {
        match self.map.get(&cookie, 0) {
            Ok(entry) => Ok(Some(entry)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(error) => Err(at(maps::NAMESPACES)(error)),
        }
    }

    /// Makes it known, or changes what is known.
    ///
    /// # Errors
    /// The table is full.
    pub fn put(&mut self, cookie: u64, entry: Namespace) -> Result<(), TableError> {
        self.map.insert(cookie, entry, 0).map_err(at(maps::NAMESPACES))
    }

    /// Forgets it: from now on what leaves it is refused.
    ///
    /// # Errors
    /// The kernel's.
    pub fn remove(&mut self, cookie: u64) -> Result<(), TableError> {
        was_there(self.map.remove(&cookie)).map(drop).map_err(at(maps::NAMESPACES))
    }
}

/// Whose hooks are in effect in a cgroup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// No interceptor's.
    None,
    /// Those that read the table that was asked about.
    These,
    /// Another interceptor's, or those of this one before its pins were lost.
    Others,
}

/// Whose hooks are in effect in `cgroup`, those at its parents included. `table`: whose are meant.
///
/// # Errors
/// It is no cgroup; no privilege.
pub fn standing(cgroup: &Path, table: Option<&PinnedNamespaces>) -> io::Result<Standing> {
    // The last of the hooks to be attached: where it is, all are.
    let Some(last) = HOOKS.iter().rfind(|hook| hook.side == Side::Workload) else {
        return Ok(Standing::None);
    };
    let ids = sys::in_effect(File::open(cgroup)?.as_fd(), last.attach_type)?;
    let mut found = Standing::None;
    for program in loaded_programs() {
        let program = match program {
            Ok(program) => program,
            // It went while we looked.
            Err(error) if is_gone(&error) => continue,
            Err(error) => return Err(io::Error::other(error)),
        };
        if !ids.contains(&program.id()) || !is_called(program.name_as_str(), last) {
            continue;
        }
        let read = program.map_ids().map_err(io::Error::other)?.unwrap_or_default();
        if table.is_some_and(|table| read.contains(&table.id)) {
            return Ok(Standing::These);
        }
        found = Standing::Others;
    }
    Ok(found)
}

/// The kernel keeps 15 letters of a program's name.
fn is_called(name: Option<&str>, hook: &Hook) -> bool {
    name == Some(&hook.program[..hook.program.len().min(15)])
}

fn is_gone(error: &ProgramError) -> bool {
    let mut cause: Option<&dyn std::error::Error> = Some(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<io::Error>() {
            return error.kind() == io::ErrorKind::NotFound;
        }
        cause = error.source();
    }
    false
}
