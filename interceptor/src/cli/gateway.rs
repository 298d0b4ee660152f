//! `interceptor gateway`.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;

use super::values::{LogTarget, parse_log_target, parse_resolver};
use crate::policy::{Enforcement, Outbound};

/// How long streams may go on after a signal, in seconds: as a daemon's connections, whose place was
/// taken.
const DRAIN_TIME: u64 = 45;

/// `interceptor gateway`.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
#[command(after_help = "Example:
  interceptor gateway --listen 192.0.2.10:15008 -f policy/ --outbound registry-only
    --nodes nodes.yaml --tls-cert gw.pem --tls-key gw.key --client-ca nodes-ca.pem
Needs no privilege. A signal drains it: no new streams, those that are open go on until they end, or
--drain-time is over. A second signal ends it at once.
Exit status: 0 all streams have ended; 1 some were cut; 64 usage; 65 resources, certificates or the
table of nodes cannot be used; 70 internal; 73 the address is in use.")]
pub struct Gateway {
    /// Where nodes connect.
    #[arg(long, value_name = "IP:PORT")]
    pub listen: SocketAddr,

    /// As with `run`. Repeatable.
    #[arg(short = 'f', long = "filename", visible_alias = "config", value_name = "FILE|DIR")]
    pub files: Vec<PathBuf>,

    /// As with `run`.
    #[arg(long, value_name = "FILE")]
    pub mesh_config: Option<PathBuf>,

    /// As with `run`.
    #[arg(long, value_enum, value_name = "POLICY")]
    pub outbound: Option<Outbound>,

    /// As with `run`.
    #[arg(long, value_enum, value_name = "PROFILE")]
    pub enforcement: Option<Enforcement>,

    /// Which node may speak for which workloads (docs/gateway.md). Changes are followed.
    #[arg(long, value_name = "FILE")]
    pub nodes: PathBuf,

    /// The gateway's certificate, PEM. Changes are followed, of these four.
    #[arg(long, value_name = "FILE")]
    pub tls_cert: PathBuf,

    /// Its key, PEM.
    #[arg(long, value_name = "FILE")]
    pub tls_key: PathBuf,

    /// Who signs the nodes' certificates, PEM.
    #[arg(long, value_name = "FILE")]
    pub client_ca: PathBuf,

    /// Which of those were revoked, PEM.
    #[arg(long, value_name = "FILE")]
    pub client_crl: Option<PathBuf>,

    /// DNS servers that the gateway asks. Repeatable [default: nameservers of /etc/resolv.conf].
    #[arg(long = "resolver", value_name = "IP[:PORT]", value_parser = parse_resolver)]
    pub resolvers: Vec<SocketAddr>,

    /// Where the access log goes; - is standard output [default: the mesh config's, else standard
    /// output].
    #[arg(long, value_name = "FILE|-", value_parser = parse_log_target)]
    pub access_log: Option<LogTarget>,

    /// How long streams may go on after a signal. Then they are cut.
    #[arg(long, value_name = "SECONDS", default_value_t = DRAIN_TIME,
          value_parser = clap::value_parser!(u64).range(..=86_400))]
    pub drain_time: u64,
}
