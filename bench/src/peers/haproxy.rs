//! HAProxy: one front end for each port, TLS by name, splice forced.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::Result;
use interceptor_tests::world::World;

use super::{Setup, configured};

pub(super) fn set_up(program: &Path, world: &World, directory: &Path) -> Result<Setup> {
    let config = directory.join("haproxy.cfg");
    fs::write(&config, configured(include_str!("haproxy.cfg"), world))?;
    let mut command = Command::new(program);
    // In the foreground. Quietly (-q) would close standard output, which has the log.
    command.args(["-db", "-f"]).arg(&config);
    let ports = vec![(443, 15443), (80, 15080), (7000, 15700)];
    Ok(Setup { command, ports, log: directory.join("access.log") })
}
