//! What policies have besides ServiceEntries.

use interceptor_tests::hellos::Random;

/// A host of a port.
pub(crate) struct Host {
    /// Of the port's entries.
    pub(crate) number: u8,
    /// As its entry has it.
    pub(crate) written: String,
    /// Of its port.
    pub(crate) protocol: &'static str,
}

/// How many kinds [`more`] knows.
pub(crate) const KINDS: usize = 12;

/// A VirtualService or DestinationRule for one host of a port, of the kind with this number.
pub(crate) fn more(random: &mut Random, kind: usize, port: u16, hosts: &[Host]) -> String {
    let Host { number, written: host, protocol } = random.pick(hosts);
    let other = &random.pick(hosts).written;
    let to = |host: &str, weight: &str| {
        let host = host.trim_start_matches("*.");
        format!("{{destination: {{host: {host}, port: {{number: {port}}}}}{weight}}}")
    };
    let route = match random.below(3) {
        0 => to(host, ""),
        1 => to(other, ""),
        _ => format!("{}, {}", to(host, ", weight: 30"), to(other, ", weight: 70")),
    };
    let rule = |spec: &str| {
        let host = host.trim_start_matches("*.");
        resource(
            "DestinationRule",
            port,
            *number,
            &format!("host: {host}, trafficPolicy: {{{spec}}}"),
        )
    };
    match kind {
        0..3 if matches!(*protocol, "TLS" | "HTTPS") => {
            let rule =
                format!("{{match: [{{port: {port}, sniHosts: ['{host}']}}], route: [{route}]}}");
            virtual_service(port, *number, host, &format!("tls: [{rule}]"))
        }
        3 | 4 if *protocol == "TCP" => {
            let rule = format!("{{match: [{{port: {port}}}], route: [{route}]}}");
            virtual_service(port, *number, host, &format!("tcp: [{rule}]"))
        }
        5 => virtual_service(port, *number, host, &format!("http: [{{route: [{route}]}}]")),
        6 => rule("tls: {mode: SIMPLE}"),
        7 => rule("connectionPool: {tcp: {maxConnections: 1000}}"),
        8 => rule("outlierDetection: {consecutive5xxErrors: 5}"),
        9 => rule("loadBalancer: {simple: PASSTHROUGH}"),
        10 => rule("tunnel: {protocol: CONNECT, targetHost: tunnel.test, targetPort: 443}"),
        _ => rule("loadBalancer: {simple: RANDOM}"),
    }
}

/// A Sidecar that hides some of the entries from the workload.
pub(crate) fn sidecar(random: &mut Random) -> String {
    let hosts = random.pick(&["'./*'", "'*/*'", "'./*', 'other/*'", "'*/*', '~other/*'"]);
    resource("Sidecar", 0, 0, &format!("egress: [{{hosts: [{hosts}]}}]"))
}

fn virtual_service(port: u16, number: u8, host: &str, spec: &str) -> String {
    resource("VirtualService", port, number, &format!("hosts: ['{host}'], {spec}"))
}

fn resource(kind: &str, port: u16, number: u8, spec: &str) -> String {
    format!(
        "---\napiVersion: networking.istio.io/v1\nkind: {kind}\n\
         metadata: {{name: r-{port}-{number}}}\nspec: {{{spec}}}\n"
    )
}
