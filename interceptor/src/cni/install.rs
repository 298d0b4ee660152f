//! Puts the plugin where the container runtime looks: its binary, and its place at the end of the network's
//! chain. What cannot be understood is left as it is.
//!
//! A runtime takes the first file of its directory, in the order of their names, that ends in `.conflist`,
//! `.conf` or `.json`. A file that is one plugin's and no list is made a list, and laid aside.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::{Settings, TYPE, call};
use crate::files::replace;

/// What the name of a file as it was before us ends in. No runtime reads it.
const SAVED: &str = "interceptor-saved";

/// Where the plugin goes, and what it is told.
#[derive(Debug, Clone)]
pub struct Installer {
    /// The directory of plugins, /opt/cni/bin.
    pub binaries: PathBuf,
    /// The directory of networks, /etc/cni/net.d.
    pub networks: PathBuf,
    /// Our own binary.
    pub own: PathBuf,
    /// What the configuration says.
    pub settings: Settings,
}

/// Why it is not installed, or not removed.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// There is no network to stand behind.
    #[error("{} has no network's configuration yet: the node's network plugin writes it", .0.display())]
    NoNetwork(PathBuf),
    /// It was left as it is.
    #[error("{} is left as it is: {why}", .file.display())]
    Unreadable {
        /// Which.
        file: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The system's.
    #[error("{}: {source}", .path.display())]
    Io {
        /// What was read or written.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

fn io(path: &Path) -> impl FnOnce(io::Error) -> InstallError {
    move |source| InstallError::Io { path: path.to_owned(), source }
}

/// A network's configuration.
struct Chain {
    file: PathBuf,
    /// As a list, whatever the file is.
    list: Value,
    /// What the file has.
    bytes: Vec<u8>,
    /// Its permissions.
    mode: u32,
}

impl Installer {
    /// Puts binary and configuration in their places, and gives the configuration's file. Done again, it
    /// changes nothing, but for what others changed meanwhile.
    ///
    /// # Errors
    /// [`InstallError`]; what is there then works as before.
    pub fn install(&self) -> Result<PathBuf, InstallError> {
        // The plugin before its name: a chain with a plugin that is not there attaches nobody.
        self.install_binary()?;
        let chain = self.first()?;
        if self.is_in(&chain.list) && chain.is_list() {
            return Ok(chain.file);
        }
        let file = chain.file.with_extension("conflist");
        if !chain.is_list() && file.exists() && !has_ours(&read(&file)?.list) {
            let why = format!("{} is there too, and which of them counts?", file.display());
            return Err(InstallError::Unreadable { file: chain.file, why });
        }
        let saved = saved(&chain.file);
        let list = self.with_ours(&chain.list);
        if !chain.is_list() {
            write(&file, &list, chain.mode)?;
            fs::rename(&chain.file, &saved).map_err(io(&chain.file))?;
        } else {
            if !has_ours(&chain.list) {
                replace(&saved, &chain.bytes, chain.mode).map_err(io(&saved))?;
            }
            write(&file, &list, chain.mode)?;
        }
        Ok(file)
    }

    /// Whether the runtime will call the plugin, as it is to be called. To be asked again and again: the
    /// network's own agent may write its file anew.
    pub fn is_installed(&self) -> bool {
        let length = |path: &Path| fs::metadata(path).map(|meta| meta.len()).ok();
        let binary = self.binaries.join(TYPE);
        length(&binary).is_some_and(|there| Some(there) == length(&self.own))
            && self.first().is_ok_and(|chain| chain.is_list() && self.is_in(&chain.list))
    }

    /// Takes the plugin out of every chain; where nobody else changed the file since, it has the bytes
    /// again that it had. `in_use`: pods that it attached are still there, and the runtime may call it for
    /// their end; then the binary stays.
    ///
    /// # Errors
    /// A file cannot be written. One that cannot be read is left as it is.
    pub fn remove(&self, in_use: bool) -> Result<(), InstallError> {
        for file in self.files()?.into_iter().filter(|file| is_list(file)) {
            let Ok(chain) = read(&file) else { continue };
            if has_ours(&chain.list) {
                restore(&chain)?;
            }
        }
        if in_use {
            return Ok(());
        }
        let binary = self.binaries.join(TYPE);
        match fs::remove_file(&binary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io(&binary)(error)),
            _ => Ok(()),
        }
    }

    fn install_binary(&self) -> Result<(), InstallError> {
        let binary = self.binaries.join(TYPE);
        if are_same(&self.own, &binary).unwrap_or(false) {
            return Ok(());
        }
        let copy = || {
            let new = tempfile::NamedTempFile::new_in(&self.binaries)?;
            io::copy(&mut File::open(&self.own)?, &mut new.as_file())?;
            new.as_file().set_permissions(fs::Permissions::from_mode(0o755))?;
            new.as_file().sync_all()?;
            new.persist(&binary).map(drop).map_err(|error| error.error)
        };
        copy().map_err(io(&binary))
    }

    /// Every file that a runtime would look at, in its order.
    fn files(&self) -> Result<Vec<PathBuf>, InstallError> {
        let entries = fs::read_dir(&self.networks).map_err(io(&self.networks))?;
        let mut files: Vec<PathBuf> = entries
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| counts(path))
            .collect();
        files.sort();
        Ok(files)
    }

    /// The network that the runtime takes.
    fn first(&self) -> Result<Chain, InstallError> {
        let first = self.files()?.into_iter().next();
        read(&first.ok_or_else(|| InstallError::NoNetwork(self.networks.clone()))?)
    }

    /// Our element of a chain.
    fn ours(&self) -> Value {
        // The fields of the settings are words, numbers and maps by words.
        let mut ours = serde_json::to_value(&self.settings).unwrap_or_else(|_| json!({}));
        ours["type"] = TYPE.into();
        ours
    }

    fn is_in(&self, list: &Value) -> bool {
        let ours = self.ours();
        plugins(list).filter(|plugin| is_ours(plugin)).eq([&ours])
    }

    /// The chain with our element in it once: where it stood, else at the end.
    fn with_ours(&self, list: &Value) -> Value {
        let mut place = None;
        let mut all = Vec::new();
        for plugin in plugins(list) {
            match is_ours(plugin) {
                true => place = place.or(Some(all.len())),
                false => all.push(plugin.clone()),
            }
        }
        all.insert(place.unwrap_or(all.len()), self.ours());
        with_plugins(list, all)
    }
}

impl Chain {
    fn is_list(&self) -> bool {
        is_list(&self.file)
    }
}

fn extension(path: &Path) -> Option<&str> {
    path.extension().and_then(OsStr::to_str)
}

fn counts(path: &Path) -> bool {
    matches!(extension(path), Some("conflist" | "conf" | "json"))
}

fn is_list(path: &Path) -> bool {
    extension(path) == Some("conflist")
}

fn saved(file: &Path) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(".");
    name.push(SAVED);
    name.into()
}

/// Reads a network's configuration, if it is one in which we can stand.
fn read(file: &Path) -> Result<Chain, InstallError> {
    let bytes = fs::read(file).map_err(io(file))?;
    let mode = fs::metadata(file).map_err(io(file))?.permissions().mode() & 0o7777;
    match as_list(&bytes, is_list(file)) {
        Ok(list) => Ok(Chain { file: file.to_owned(), list, bytes, mode }),
        Err(why) => Err(InstallError::Unreadable { file: file.to_owned(), why }),
    }
}

/// A configuration as a list of plugins.
fn as_list(bytes: &[u8], is_list: bool) -> Result<Value, String> {
    let value: Value =
        serde_json::from_slice(bytes).map_err(|error| format!("no JSON: {error}"))?;
    let list = match is_list {
        true => value,
        false => json!({
            "cniVersion": value["cniVersion"], "name": value["name"], "plugins": [value],
        }),
    };
    let version = list["cniVersion"].as_str().unwrap_or("0.1.0");
    if !call::speaks(version) {
        return Err(format!("its cniVersion {version} is not spoken by this plugin"));
    }
    if !list["name"].is_string() {
        return Err("it has no name".to_owned());
    }
    let mut named = plugins(&list).map(|plugin| plugin["type"].is_string()).peekable();
    if named.peek().is_none() || !named.all(|named| named) {
        return Err("it has no plugins, or one without a type".to_owned());
    }
    drop(named);
    Ok(list)
}

fn plugins(list: &Value) -> impl Iterator<Item = &Value> {
    list["plugins"].as_array().into_iter().flatten()
}

fn is_ours(plugin: &Value) -> bool {
    plugin["type"] == TYPE
}

fn has_ours(list: &Value) -> bool {
    plugins(list).any(is_ours)
}

fn with_plugins(list: &Value, plugins: Vec<Value>) -> Value {
    let mut list = list.clone();
    list["plugins"] = plugins.into();
    list
}

/// Makes a chain what it was without us.
fn restore(chain: &Chain) -> Result<(), InstallError> {
    let without = plugins(&chain.list).filter(|plugin| !is_ours(plugin)).cloned().collect();
    let without = with_plugins(&chain.list, without);
    let remove = |file: &Path| fs::remove_file(file).map_err(io(file));
    for original in ["conf", "json", "conflist"].map(|end| chain.file.with_extension(end)) {
        let (saved, was_single) = (saved(&original), original != chain.file);
        let Ok(bytes) = fs::read(&saved) else { continue };
        if was_single && original.exists() {
            // The network's agent has written it anew: the list is of nobody any more.
            remove(&saved)?;
            return remove(&chain.file);
        }
        if as_list(&bytes, !was_single).is_ok_and(|list| list == without) {
            fs::rename(&saved, &original).map_err(io(&saved))?;
            return if was_single { remove(&chain.file) } else { Ok(()) };
        }
        // Somebody has changed the list since.
        remove(&saved)?;
    }
    match plugins(&without).next() {
        Some(_) => write(&chain.file, &without, chain.mode),
        None => remove(&chain.file),
    }
}

fn write(file: &Path, list: &Value, mode: u32) -> Result<(), InstallError> {
    let written = serde_json::to_vec_pretty(list).map_err(io::Error::from);
    let written = written.and_then(|mut bytes| {
        bytes.push(b'\n');
        replace(file, &bytes, mode)
    });
    written.map_err(io(file))
}

/// Whether two files have the same bytes.
fn are_same(one: &Path, other: &Path) -> io::Result<bool> {
    let (one, other) = (File::open(one)?, File::open(other)?);
    if one.metadata()?.len() != other.metadata()?.len() {
        return Ok(false);
    }
    let (mut one, mut other) = (BufReader::new(one), BufReader::new(other));
    loop {
        let (left, right) = (one.fill_buf()?, other.fill_buf()?);
        let length = left.len().min(right.len());
        if left[..length] != right[..length] {
            return Ok(false);
        }
        if length == 0 {
            return Ok(true);
        }
        one.consume(length);
        other.consume(length);
    }
}

#[cfg(test)]
mod tests;
