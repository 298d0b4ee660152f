//! Faults that somebody might make.

/// A fault: in `file`, `faulty` in place of `sound`.
pub(super) struct Fault {
    pub(super) name: &'static str,
    pub(super) file: &'static str,
    pub(super) sound: &'static str,
    pub(super) faulty: &'static str,
}

const fn fault(
    name: &'static str,
    file: &'static str,
    sound: &'static str,
    faulty: &'static str,
) -> Fault {
    Fault { name, file, sound, faulty }
}

const MOD: &str = "interceptor/src/decide/mod.rs";
const HOST: &str = "interceptor/src/decide/host.rs";
const ISTIO: &str = "interceptor/src/decide/istio.rs";
const NET: &str = "interceptor/src/decide/net.rs";
const PATTERN: &str = "interceptor/src/decide/pattern.rs";
const REQUEST: &str = "interceptor/src/decide/request.rs";
const SERVICE: &str = "interceptor/src/decide/service.rs";
const STRICT: &str = "interceptor/src/decide/strict.rs";
const STRICT_PORT: &str = "interceptor/src/decide/strict/port.rs";
const HTTP_ROUTE: &str = "interceptor/src/decide/http_route.rs";
const BIND: &str = "interceptor/src/policy/virtual_service/compile.rs";
const SIDECAR: &str = "interceptor/src/policy/sidecar/mod.rs";
const COMPILE: &str = "interceptor/src/policy/compile.rs";
const REGISTRY: &str = "interceptor/src/policy/registry.rs";

pub(super) const FAULTS: &[Fault] = &[
    fault(
        "registry-only passes",
        MOD,
        "self.outbound.is_open() && !CAPTURE_PORTS",
        "!CAPTURE_PORTS",
    ),
    fault("HTTP/1.0 is served", MOD, "head.version < 11", "head.version < 10"),
    fault("CONNECT is forwarded", MOD, "head.method == \"CONNECT\"", "head.method == \"connect\""),
    fault(
        "wildcard matches its parent",
        HOST,
        "successors(parent(&self.0), |name| parent(name))",
        "successors(Some(&*self.0), |name| parent(name))",
    ),
    fault(
        "trailing dot stays",
        HOST,
        "text.strip_suffix('.').unwrap_or(text);\n        if text.is_empty()",
        "text;\n        if text.is_empty()",
    ),
    fault(
        "case stays",
        HOST,
        "Ok(Self(text.to_ascii_lowercase().into()))",
        "Ok(Self(text.into()))",
    ),
    fault(
        "wildcard before exact",
        PATTERN,
        "exact.chain(suffixes.into_iter().map(|(_, service)| service))",
        "suffixes.into_iter().map(|(_, service)| service).chain(exact)",
    ),
    fault(
        "shortest wildcard first",
        PATTERN,
        "name.parents().filter_map(|suffix| Some",
        "name.parents().collect::<Vec<_>>().into_iter().rev().filter_map(|suffix| Some",
    ),
    fault("shortest prefix wins", NET, "|have| length.cmp(have)", "|have| have.cmp(&length)"),
    fault(
        "addresses are ignored",
        ISTIO,
        "if let Some(bound) = self.bound.get(&(dst.ip(), dst.port())) {",
        "if let Some(bound) = self.bound.get(&(dst.ip(), 0)) {",
    ),
    fault(
        "back from a longer prefix",
        ISTIO,
        "self.networks.longest(dst.ip()).unwrap_or(&self.any)",
        "self.networks.longest(dst.ip()).filter(|c| c.pick(name).is_some()).unwrap_or(&self.any)",
    ),
    fault("no default chain", ISTIO, "chains.pick(name).or(self.any.rest)", "chains.pick(name)"),
    fault(
        "last address-less TCP wins",
        ISTIO,
        "self.rest.get_or_insert(number);",
        "self.rest = Some(number);",
    ),
    fault(
        "HTTP on a TLS port is served",
        ISTIO,
        "None => port.http || !port.names.is_empty(),",
        "None => true,",
    ),
    fault(
        "MONGO shares its port",
        ISTIO,
        "(port.exclusive && other) || (service.exclusive && port.mixed)",
        "false",
    ),
    fault(
        "any port in Host",
        REQUEST,
        "if port.is_some_and(|port| port != dst.port()) {",
        "if port.is_some_and(|port| port == 0) {",
    ),
    fault(
        "any address in Host",
        REQUEST,
        "Host::Ip(ip) if ip != dst.ip())",
        "Host::Ip(ip) if ip.is_unspecified())",
    ),
    fault(
        "the first of two Hosts",
        REQUEST,
        "_ => return Err(BadHost),\n    };\n    let authority",
        "[first, ..] => Some(parse(first, strict)?),\n    };\n    let authority",
    ),
    fault(
        "Host before the authority",
        REQUEST,
        "            authority\n        }\n    };",
        "            header\n        }\n    };",
    ),
    fault(
        "NONE is not verified",
        SERVICE,
        "Upstream::VerifiedOriginalDst { host: name.clone(), port }",
        "Upstream::OriginalDst { port, name: Some(name.clone()) }",
    ),
    fault(
        "link-local is not special",
        STRICT,
        "Outbound::RegistryOnly => is_special(dst.ip()),",
        "Outbound::RegistryOnly => is_metadata(dst.ip()),",
    ),
    fault(
        "metadata is not special",
        STRICT,
        "Outbound::AllowAny | Outbound::AllowAnyDynamicDns => is_metadata(dst.ip()),",
        "Outbound::AllowAny | Outbound::AllowAnyDynamicDns => false,",
    ),
    fault(
        "TLS without SNI by address",
        STRICT,
        "Reason::NoServerName);\n            return self.by_resolution(rules, dst, claims, otherwise);",
        "Reason::NoServerName);\n            return self.nameless(port, rules, dst, otherwise);",
    ),
    fault(
        "silence at the address of a sniffed service",
        STRICT,
        "Some((_, number)) if self.group(rules, *number) != Some(Group::Tcp) => otherwise,",
        "Some((_, number)) if self.group(rules, *number).is_none() => otherwise,",
    ),
    fault(
        "names regardless of address",
        STRICT,
        "        _ => service.holds(dst.ip()),\n",
        "        _ => true,\n",
    ),
    fault(
        "the first name, not the best",
        STRICT,
        "if next.0 > best.0 { next } else { best }",
        "best",
    ),
    fault(
        "TCP takes HTTP of its port",
        STRICT,
        "port.http.is_empty().then_some(&port.tcp_claims);",
        "Some(&port.tcp_claims);",
    ),
    fault(
        "decided without a look",
        STRICT_PORT,
        "Some(rank) => looks >= Some(rank),",
        "Some(rank) => looks > Some(rank),",
    ),
    fault(
        "exportTo is ignored",
        COMPILE,
        "entries.retain(|entry| exported(&entry.export_to, default, &entry.meta.namespace, namespace));",
        "entries.retain(|_| !namespace.is_empty());",
    ),
    fault("public before private", COMPILE, "        (public, meta", "        (!public, meta"),
    fault("younger before older", COMPILE, "(public, meta.created.clone(), ", "(public, "),
    fault(
        "own namespace last",
        COMPILE,
        "(*entry.meta.namespace != *namespace, entry",
        "(*entry.meta.namespace == *namespace, entry",
    ),
    fault("unlike entries unite", COMPILE, "        && first.resolution == later.resolution\n", ""),
    fault(
        "targetPort is ignored",
        REGISTRY,
        "let own_port = port.target_port.unwrap_or(port.number);",
        "let own_port = port.number;",
    ),
    fault("weights are dropped", REGISTRY, "let weight = endpoint.weight;", "let weight = 1;"),
    fault(
        "round robin is forgotten",
        REGISTRY,
        "let round_robin = entry.resolution == Resolution::DnsRoundRobin;",
        "let round_robin = false;",
    ),
    fault(
        "endpoint ports are ignored",
        REGISTRY,
        "endpoint.ports.iter().find(|(name, _)| *name == port.name);",
        "endpoint.ports.iter().find(|(name, _)| name.is_empty());",
    ),
    fault(
        "the last rule first",
        HTTP_ROUTE,
        "for rule in &self.rules {",
        "for rule in self.rules.iter().rev() {",
    ),
    fault(
        "one condition suffices",
        HTTP_ROUTE,
        "&& text(&self.method, request.head.method)",
        "|| text(&self.method, request.head.method)",
    ),
    fault(
        "withoutHeaders is headers",
        HTTP_ROUTE,
        "&& !self.without_headers",
        "&& self.without_headers",
    ),
    fault("paths as sent", HTTP_ROUTE, "normalize(path, self.normalization)", "path.to_owned()"),
    fault(
        "match.port is ignored",
        BIND,
        "scope.port.is_some_and(|own| own != port)",
        "scope.port.is_some_and(|own| own == 0)",
    ),
    fault("no only port", BIND, "[only] => *only,", "[only] if *only == handler => *only,"),
    fault(
        "wildcards over known hosts",
        BIND,
        "                && !covered(host)\n",
        "                && (true || !covered(host))\n",
    ),
    fault(
        "own chain beside tls rules",
        BIND,
        "chains.complete |= group == Group::Tls || item.subnets.is_empty();",
        "chains.complete |= group != Group::Tls && item.subnets.is_empty();",
    ),
    fault(
        "destinations of weight 0",
        BIND,
        "to.iter().filter(|to| to.weight > 0).map(",
        "to.iter().map(",
    ),
    fault("exclusions are ignored", SIDECAR, "takes(false) && !takes(true)", "takes(false)"),
    fault("any Sidecar of the namespace", SIDECAR, "&& caller.has(&sidecar.selector)", ""),
    fault(
        "destinations are not imported",
        SIDECAR,
        "            || self.also.contains(host)\n            || self.egress",
        "            || self.egress",
    ),
];
