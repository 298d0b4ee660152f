//! Envoy as Istio's sidecar has it: one listener behind the redirection with original_dst,
//! tls_inspector and http_inspector, filter chains by name, and a black hole for the rest.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;
use interceptor_tests::world::World;
use serde_json::{Value, json};

use super::{Peer, Setup, directory, launch, program};
use crate::policy;
use crate::scenario::Service;

const PORT: u16 = 15001;
/// The default format of Istio's access log, without what needs its own filters.
const FORMAT: &str = "[%START_TIME%] \"%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%\" \
    %RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% %CONNECTION_TERMINATION_DETAILS% \
    \"%UPSTREAM_TRANSPORT_FAILURE_REASON%\" %BYTES_RECEIVED% %BYTES_SENT% %DURATION% \
    %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% \"%REQ(X-FORWARDED-FOR)%\" \"%REQ(USER-AGENT)%\" \
    \"%REQ(X-REQUEST-ID)%\" \"%REQ(:AUTHORITY)%\" \"%UPSTREAM_HOST%\" %UPSTREAM_CLUSTER% \
    %UPSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_REMOTE_ADDRESS% \
    %REQUESTED_SERVER_NAME% %ROUTE_NAME%\n";
const V3: &str = "type.googleapis.com/envoy";

/// On PATH, or in the Python environment at `extra`, where the package keeps the program itself.
pub(super) fn find(extra: &Path) -> Option<PathBuf> {
    let libraries = fs::read_dir(extra.join("lib")).ok().into_iter().flatten().flatten();
    let packaged = libraries.map(|lib| lib.path().join("site-packages/envoy/_bin/envoy"));
    packaged.chain(program("envoy")).find(|path| path.is_file())
}

/// For all services, at the addresses that they have.
pub(super) fn for_services(program: &Path, world: &World, directory: &Path) -> Result<Setup> {
    let log = directory.join("access.log");
    let tls = Service::Tls;
    let chains = vec![
        tls_chain(tls.host(), &log),
        tcp_chain(&log),
        http_chain(&[Service::Http, Service::Originate], &log),
    ];
    let clusters = Service::ALL.map(|service| {
        let ca = (service == Service::Originate).then(|| world.ca_file());
        let port = if service == Service::Originate { 443 } else { service.port() };
        let address = service.address().to_string();
        cluster(service.host(), "STATIC", &address, port, ca.as_deref())
    });
    set_up(program, directory, log, chains, clusters.into())
}

/// For so many TLS hosts, each resolved by DNS, and a way to add one more.
pub(crate) fn with_hosts(program: &Path, world: &World, count: usize) -> Result<Peer> {
    let directory = directory(world)?;
    let log = directory.join("access.log");
    let (chains, clusters) = hosts(count, &log);
    launch(set_up(program, &directory, log, chains, clusters)?, world)
}

/// Replaces the hosts of [`with_hosts`]: clusters first, as Istio's control plane does.
pub(crate) fn set_hosts(world: &World, count: usize) -> Result<()> {
    let directory = directory(world)?;
    let (chains, clusters) = hosts(count, &directory.join("access.log"));
    publish(&directory, chains, clusters)
}

fn hosts(count: usize, log: &Path) -> (Vec<Value>, Vec<Value>) {
    let names: Vec<String> = (0..count).map(policy::host).collect();
    let chains = names.iter().map(|name| tls_chain(name, log)).collect();
    let of = |name: &String| cluster(name, "STRICT_DNS", name, Service::Tls.port(), None);
    (chains, names.iter().map(of).collect())
}

fn set_up(
    program: &Path,
    directory: &Path,
    log: PathBuf,
    chains: Vec<Value>,
    clusters: Vec<Value>,
) -> Result<Setup> {
    publish(directory, chains, clusters)?;
    let source = |file: &str| {
        let path = directory.join(file);
        json!({"resource_api_version": "V3", "path_config_source": {"path": path}})
    };
    let bootstrap = json!({
        "node": {"id": "bench", "cluster": "bench"},
        "dynamic_resources": {"lds_config": source("lds.json"), "cds_config": source("cds.json")},
    });
    let config = directory.join("bootstrap.json");
    fs::write(&config, bootstrap.to_string())?;
    let mut command = Command::new(program);
    command.args(["--concurrency", "2", "--log-level", "error", "--disable-hot-restart"]);
    command.args(["--file-flush-interval-msec", "100", "-c"]).arg(&config);
    let ports = [443, 80, 7000].map(|dialled| (dialled, PORT)).into();
    Ok(Setup { command, ports, log })
}

/// Writes the resources where Envoy watches for files that are moved into place.
fn publish(directory: &Path, chains: Vec<Value>, clusters: Vec<Value>) -> Result<()> {
    let typed = |kind: &str, resources: Vec<Value>| {
        let tag = |mut resource: Value| {
            resource["@type"] = format!("{V3}.config.{kind}").into();
            resource
        };
        json!({"resources": resources.into_iter().map(tag).collect::<Vec<_>>()})
    };
    let black_hole =
        json!({"name": "BlackHoleCluster", "type": "STATIC", "connect_timeout": "10s"});
    let clusters = clusters.into_iter().chain([black_hole]).collect();
    for (file, resources) in [
        ("cds.json", typed("cluster.v3.Cluster", clusters)),
        ("lds.json", typed("listener.v3.Listener", vec![listener(chains)])),
    ] {
        let partial = directory.join(format!("{file}.new"));
        fs::write(&partial, resources.to_string())?;
        fs::rename(&partial, directory.join(file))?;
    }
    Ok(())
}

fn listener(chains: Vec<Value>) -> Value {
    let inspector = |name: &str, message: &str| {
        json!({
            "name": format!("envoy.filters.listener.{name}"),
            "typed_config": {"@type": format!("{V3}.extensions.filters.listener.{name}.v3.{message}")},
            // Ports of which it is known that they carry neither, as Istio does.
            "filter_disabled": {"destination_port_range": {"start": 7000, "end": 7001}},
        })
    };
    let mut original = inspector("original_dst", "OriginalDst");
    original["filter_disabled"] = Value::Null;
    json!({
        "name": "virtualOutbound",
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": PORT}},
        "traffic_direction": "OUTBOUND",
        "listener_filters": [
            original,
            inspector("tls_inspector", "TlsInspector"),
            inspector("http_inspector", "HttpInspector"),
        ],
        "listener_filters_timeout": "5s",
        "filter_chains": chains,
        "default_filter_chain": {"filters": [tcp_proxy("BlackHoleCluster", Value::Null)]},
    })
}

fn tls_chain(host: &str, log: &Path) -> Value {
    json!({
        "filter_chain_match": {
            "destination_port": Service::Tls.port(),
            "transport_protocol": "tls",
            "server_names": [host],
        },
        "filters": [tcp_proxy(host, access_log(log))],
    })
}

fn tcp_chain(log: &Path) -> Value {
    let tcp = Service::Tcp;
    json!({
        "filter_chain_match": {"destination_port": tcp.port()},
        "filters": [tcp_proxy(tcp.host(), access_log(log))],
    })
}

fn http_chain(services: &[Service], log: &Path) -> Value {
    let host = |service: &Service| {
        let name = service.host();
        json!({
            "name": name,
            "domains": [name, format!("{name}:80")],
            "routes": [{"name": "default", "match": {"prefix": "/"}, "route": {"cluster": name}}],
        })
    };
    let refused = json!({
        "name": "block_all",
        "domains": ["*"],
        "routes": [{"match": {"prefix": "/"}, "direct_response": {"status": 502}}],
    });
    let hosts: Vec<Value> = services.iter().map(host).chain([refused]).collect();
    let router = format!("{V3}.extensions.filters.http.router.v3.Router");
    let network = "extensions.filters.network";
    json!({
        "filter_chain_match": {
            "destination_port": Service::Http.port(),
            "application_protocols": ["http/1.0", "http/1.1", "h2c"],
        },
        "filters": [{
            "name": "envoy.filters.network.http_connection_manager",
            "typed_config": {
                "@type": format!("{V3}.{network}.http_connection_manager.v3.HttpConnectionManager"),
                "stat_prefix": "outbound",
                "access_log": access_log(log),
                "route_config": {"name": "80", "virtual_hosts": hosts},
                "http_filters": [
                    {"name": "envoy.filters.http.router", "typed_config": {"@type": router}},
                ],
            },
        }],
    })
}

fn tcp_proxy(cluster: &str, access_log: Value) -> Value {
    json!({
        "name": "envoy.filters.network.tcp_proxy",
        "typed_config": {
            "@type": format!("{V3}.extensions.filters.network.tcp_proxy.v3.TcpProxy"),
            "stat_prefix": cluster,
            "cluster": cluster,
            "access_log": access_log,
        },
    })
}

fn access_log(path: &Path) -> Value {
    json!([{
        "name": "envoy.access_loggers.file",
        "typed_config": {
            "@type": format!("{V3}.extensions.access_loggers.file.v3.FileAccessLog"),
            "path": path,
            "log_format": {"text_format_source": {"inline_string": FORMAT}},
        },
    }])
}

fn cluster(name: &str, kind: &str, address: &str, port: u16, ca: Option<&Path>) -> Value {
    let mut cluster = json!({
        "name": name,
        "type": kind,
        "connect_timeout": "10s",
        "dns_lookup_family": "V4_ONLY",
        // Istio's: no limit.
        "circuit_breakers": {"thresholds": [{
            "max_connections": u32::MAX, "max_pending_requests": u32::MAX,
            "max_requests": u32::MAX, "max_retries": u32::MAX,
        }]},
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [{"endpoint": {
                "address": {"socket_address": {"address": address, "port_value": port}},
            }}]}],
        },
    });
    if let Some(ca) = ca {
        cluster["transport_socket"] = json!({
            "name": "envoy.transport_sockets.tls",
            "typed_config": {
                "@type": format!("{V3}.extensions.transport_sockets.tls.v3.UpstreamTlsContext"),
                "sni": name,
                "common_tls_context": {"validation_context": {
                    "trusted_ca": {"filename": ca},
                    "match_typed_subject_alt_names":
                        [{"san_type": "DNS", "matcher": {"exact": name}}],
                }},
            },
        });
    }
    cluster
}
