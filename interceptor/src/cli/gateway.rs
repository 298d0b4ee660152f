//! `interceptor gateway`.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use clap::Args;

use super::values::{
    LogTarget, parse_label, parse_log_target, parse_name, parse_namespace, parse_own,
    parse_resolver,
};
use crate::policy::{Enforcement, Outbound};

/// How long streams may go on after a signal, in seconds: as a daemon's connections, whose place was
/// taken.
const DRAIN_TIME: u64 = 45;

/// `interceptor gateway`.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
#[command(after_help = "Examples:
  Where nodes bring connections, by `egressProxy` with an hbone:// URL:
    interceptor gateway --listen 192.0.2.10:15008 -f policy/ --outbound registry-only
      --nodes nodes.yaml --tls-cert gw.pem --tls-key gw.key --client-ca nodes-ca.pem
  Where VirtualServices lead them, as to Istio's egress gateway:
    interceptor gateway --address 192.0.2.10 -f policy/ --namespace istio-system
      --labels istio=egressgateway
Needs no privilege (but for ports below 1024). A signal drains it: no new streams, those that are open go on until they end, or
--drain-time is over. A second signal ends it at once.
Exit status: 0 all streams have ended; 1 some were cut; 64 usage; 65 resources, certificates or the
table of nodes cannot be used; 70 internal; 73 the address is in use.")]
pub struct Gateway {
    /// Where nodes connect.
    #[arg(long, value_name = "IP:PORT", required_unless_present = "address",
          conflicts_with = "address", requires_all = ["nodes", "tls_cert", "tls_key", "client_ca"])]
    pub listen: Option<SocketAddr>,

    /// Serve the Gateways that select the gateway, at this address of its own: on the ports of their
    /// servers, or where its Service leads those (`targetPort`).
    #[arg(long, value_name = "IP", value_parser = parse_own)]
    pub address: Option<IpAddr>,

    /// The gateway's namespace: decides which resources it sees.
    #[arg(long, value_name = "NAME", default_value = "default", value_parser = parse_namespace,
          requires = "address")]
    pub namespace: String,

    /// The gateway's labels: which Gateways select it. Repeatable, or separated by commas.
    #[arg(long, value_name = "KEY=VALUE", value_delimiter = ',', value_parser = parse_label,
          requires = "address")]
    pub labels: Vec<(String, String)>,

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
    #[arg(long, value_name = "FILE", requires = "listen")]
    pub nodes: Option<PathBuf>,

    /// The gateway's certificate, PEM: for nodes, and for servers with ISTIO_MUTUAL. Changes are
    /// followed, of these four.
    #[arg(long, value_name = "FILE", requires_all = ["tls_key", "client_ca"])]
    pub tls_cert: Option<PathBuf>,

    /// Its key, PEM.
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,

    /// Who signs the certificates of those who connect, PEM.
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub client_ca: Option<PathBuf>,

    /// Which of those were revoked, PEM.
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub client_crl: Option<PathBuf>,

    /// DNS servers that the gateway asks. Repeatable [default: nameservers of /etc/resolv.conf].
    #[arg(long = "resolver", value_name = "IP[:PORT]", value_parser = parse_resolver)]
    pub resolvers: Vec<SocketAddr>,

    /// Where the access log goes; - is standard output [default: the mesh config's, else standard
    /// output].
    #[arg(long, value_name = "FILE|-", value_parser = parse_log_target)]
    pub access_log: Option<LogTarget>,

    /// A name, by which `status` and `metrics` find it. Their socket is for root only, and so is this.
    #[arg(long, value_parser = parse_name)]
    pub name: Option<String>,

    /// How long streams may go on after a signal. Then they are cut.
    #[arg(long, value_name = "SECONDS", default_value_t = DRAIN_TIME,
          value_parser = clap::value_parser!(u64).range(..=86_400))]
    pub drain_time: u64,
}
