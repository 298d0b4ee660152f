//! HAProxy: one front end for each port, TLS by name, splice forced.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::Result;
use interceptor_tests::world::World;

use super::{Setup, server};
use crate::scenario::Service;

pub(super) fn set_up(program: &Path, world: &World, directory: &Path) -> Result<Setup> {
    let config = directory.join("haproxy.cfg");
    let text = include_str!("haproxy.cfg")
        .replace("{tls}", &server(Service::Tls))
        .replace("{tcp}", &server(Service::Tcp))
        .replace("{http}", &server(Service::Http))
        .replace("{originate}", &server(Service::Originate))
        .replace("{ca}", &world.ca_file().to_string_lossy());
    fs::write(&config, text)?;
    let mut command = Command::new(program);
    // In the foreground. Quietly (-q) would close standard output, which has the log.
    command.args(["-db", "-f"]).arg(&config);
    let ports = vec![(443, 15443), (80, 15080), (7000, 15700)];
    Ok(Setup { command, ports, log: directory.join("access.log") })
}
