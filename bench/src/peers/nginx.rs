//! nginx: its stream module with ssl_preread for TLS and TCP, its HTTP proxy for HTTP.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use interceptor_tests::world::World;

use super::{Setup, configured};

/// Where Debian has the stream module.
pub(super) fn module() -> Option<PathBuf> {
    let path = PathBuf::from("/usr/lib/nginx/modules/ngx_stream_module.so");
    path.is_file().then_some(path)
}

pub(super) fn set_up(program: &Path, world: &World, directory: &Path) -> Result<Setup> {
    let config = directory.join("nginx.conf");
    let module = module().context("nginx has no stream module here")?;
    let text = configured(include_str!("nginx.conf"), world)
        .replace("{module}", &module.to_string_lossy())
        .replace("{dir}", &directory.to_string_lossy());
    fs::write(&config, text)?;
    let mut command = Command::new(program);
    command.arg("-p").arg(directory).arg("-e").arg(directory.join("error.log"));
    command.arg("-c").arg(&config);
    let ports = vec![(443, 15443), (80, 15080), (7000, 15700)];
    Ok(Setup { command, ports, log: directory.join("access.log") })
}
