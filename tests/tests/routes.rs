//! What a VirtualService may ask for, as a real client meets it: one rule for each action, all in
//! one file, one daemon, curl.

use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use anyhow::Result;
use interceptor_tests::log::Line;
use interceptor_tests::product::{Interceptor, Running, binary};
use interceptor_tests::servers::Seen;
use interceptor_tests::world::{World, kernel_tests};

const CLIENT: &str = env!("CARGO_BIN_EXE_interceptor-test-client");
const SHOP: &str = "shop.example.com";
const ONE: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 101));
const TWO: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 102));
const MIRROR: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 103));
/// What the names resolve to; no endpoint of anything.
const DIALLED: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 100));

const POLICY: &str = r"
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: shop, namespace: default}
spec:
  hosts: [shop.example.com]
  addresses: [203.0.113.100]
  ports:
  - {number: 80, name: http, protocol: HTTP}
  - {number: 443, name: tls, protocol: TLS}
  - {number: 17, name: tcp, protocol: TCP}
  resolution: STATIC
  endpoints:
  - {address: 203.0.113.101, labels: {version: one}}
  - {address: 203.0.113.102, labels: {version: two}}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: mirror, namespace: default}
spec:
  hosts: [mirror.example.com]
  ports: [{number: 80, name: http, protocol: HTTP}]
  resolution: STATIC
  endpoints: [{address: 203.0.113.103}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: shop, namespace: default}
spec:
  host: shop.example.com
  subsets:
  - {name: one, labels: {version: one}}
  - {name: two, labels: {version: two}}
  - name: narrow
    labels: {version: one}
    trafficPolicy: {connectionPool: {http: {http2MaxRequests: 1}}}
  - name: turns
    trafficPolicy: {loadBalancer: {simple: ROUND_ROBIN}}
  - name: sticky
    trafficPolicy: {loadBalancer: {consistentHash: {httpHeaderName: x-user}}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: part, namespace: default}
spec:
  http:
  - name: of-part
    match: [{uri: {prefix: /delegated/deep}}]
    directResponse: {status: 299}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: shop, namespace: default}
spec:
  hosts: [shop.example.com]
  http:
  - match: [{uri: {prefix: /weights}}]
    route:
    - {destination: {host: shop.example.com, subset: one}, weight: 25}
    - {destination: {host: shop.example.com, subset: two}, weight: 75}
  - match: [{uri: {prefix: /turns}}]
    route: [{destination: {host: shop.example.com, subset: turns}}]
  - match: [{uri: {prefix: /sticky}}]
    route: [{destination: {host: shop.example.com, subset: sticky}}]
  - match: [{uri: {prefix: /narrow}}]
    rewrite: {uri: /delay/1}
    route: [{destination: {host: shop.example.com, subset: narrow}}]
  - match: [{uri: {prefix: /redirect}}]
    redirect: {uri: /elsewhere, authority: other.example.com, redirectCode: 308}
  - match: [{uri: {prefix: /reply}}]
    directResponse: {status: 418, body: {string: tea}}
  - match: [{uri: {prefix: /late}}]
    timeout: 0.3s
    rewrite: {uri: /delay/5}
    route: [{destination: {host: shop.example.com, subset: one}}]
  - match: [{uri: {prefix: /again}}]
    retries: {attempts: 2, retryOn: 5xx}
    rewrite: {uri: /status/503}
    route: [{destination: {host: shop.example.com, subset: one}}]
  - match: [{uri: {prefix: /by-default}}]
    rewrite: {uri: /status/503}
    route: [{destination: {host: shop.example.com, subset: one}}]
  - match: [{uri: {prefix: /abort}}]
    fault: {abort: {httpStatus: 555, percentage: {value: 100}}}
    route: [{destination: {host: shop.example.com}}]
  - match: [{uri: {prefix: /slow}}]
    fault: {delay: {fixedDelay: 0.4s, percentage: {value: 100}}}
    route: [{destination: {host: shop.example.com}}]
  - match: [{uri: {prefix: /rewritten}, headers: {x-mode: {exact: inner}}}]
    rewrite: {uri: /headers, authority: inside.example.com}
    headers:
      request: {set: {x-set: new}, add: {x-added: more}, remove: [x-removed]}
      response: {set: {x-answer: ours}, remove: [content-type]}
    route: [{destination: {host: shop.example.com}}]
  - match: [{uri: {prefix: /mirrored}}]
    mirrors: [{destination: {host: mirror.example.com}, percentage: {value: 100}}]
    route: [{destination: {host: shop.example.com, subset: one}}]
  - match: [{uri: {prefix: /cors}}]
    corsPolicy:
      allowOrigins: [{exact: https://front.example.com}]
      allowMethods: [PUT]
      maxAge: 60s
    route: [{destination: {host: shop.example.com}}]
  - match: [{uri: {prefix: /delegated}}]
    delegate: {name: part, namespace: default}
  tls:
  - match: [{port: 443, sniHosts: [shop.example.com]}]
    route: [{destination: {host: shop.example.com, subset: two}}]
  tcp:
  - match: [{port: 17}]
    route: [{destination: {host: shop.example.com, subset: two}}]
";

/// The daemon with the policy, and the stub internet behind it.
struct Stage<'w> {
    world: &'w World,
    running: Running<'w>,
}

/// What one curl got, and what it left in the log and at the servers.
#[derive(Debug)]
struct Got {
    /// Status line, headers, body, and the status once more.
    text: String,
    line: Line,
    seen: Vec<Seen>,
    took: Duration,
}

impl Stage<'_> {
    /// One request for `path` of the shop, with further arguments of curl.
    fn curl(&self, path: &str, arguments: &[&str]) -> Result<Got> {
        let (before, started) = (self.world.seen().len(), Instant::now());
        let url = format!("http://{SHOP}{path}");
        let outcome = self.running.exec(&[&["curl", "-sSi", &url], arguments].concat(), 1)?;
        let took = started.elapsed();
        assert_eq!(outcome.finished.code, 0, "{path}: {}", outcome.finished.stderr);
        assert_eq!(outcome.log.len(), 1, "{path}: {:?}", outcome.log);
        let line = Line::parse(&outcome.log[0]).expect("a line");
        let seen = self.world.seen().split_off(before);
        Ok(Got { text: outcome.finished.stdout.to_lowercase(), line, seen, took })
    }

    /// Several requests one after the other on one connection; where each arrived.
    fn places(&self, path: &str, count: usize, arguments: &[&str]) -> Result<Vec<IpAddr>> {
        let before = self.world.seen().len();
        let url = format!("http://{SHOP}{path}[1-{count}]");
        let outcome = self.running.exec(&[&["curl", "-sS", &url], arguments].concat(), count)?;
        assert_eq!(outcome.log.len(), count, "{path}");
        let seen = self.world.seen().split_off(before);
        Ok(seen.iter().map(|seen| seen.local.ip()).collect())
    }
}

impl Got {
    #[track_caller]
    fn expect(&self, status: u16, flags: &str, texts: &[&str], arrived: usize) {
        assert!(self.text.starts_with(&format!("http/1.1 {status} ")), "{self:?}");
        assert_eq!(self.line.field("RESPONSE_CODE"), status.to_string(), "{self:?}");
        assert_eq!(self.line.field("RESPONSE_FLAGS"), flags, "{self:?}");
        for text in texts {
            assert!(self.text.contains(text), "no {text:?}: {self:?}");
        }
        assert_eq!(self.seen.len(), arrived, "{self:?}");
    }
}

/// Counts those that are `place`.
fn at(places: &[IpAddr], place: IpAddr) -> usize {
    places.iter().filter(|one| **one == place).count()
}

#[test]
fn every_action_of_a_rule() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let world = World::new()?;
    world.zone.set(SHOP, &[DIALLED]);
    let file = world.file("shop.yaml", POLICY)?;
    let flags = ["--outbound", "registry-only", "-f", &file];
    let running = Interceptor::new(&world, &binary(), &flags).start()?;
    let stage = Stage { world: &world, running };
    answers_of_its_own(&stage)?;
    times_and_repetitions(&stage)?;
    changes(&stage)?;
    destinations(&stage)?;
    limits(&stage)?;
    without_http(&stage)
}

/// VS-24, VS-25, VS-29, VS-50, VS-51, VS-12 (delegates), VS-9.
fn answers_of_its_own(stage: &Stage<'_>) -> Result<()> {
    let location = "location: http://other.example.com/elsewhere\r\n";
    stage.curl("/redirect", &[])?.expect(308, "-", &[location], 0);
    stage.curl("/reply", &[])?.expect(418, "-", &["\r\n\r\ntea"], 0);
    stage.curl("/abort", &[])?.expect(555, "FI", &["fault filter abort"], 0);
    let delayed = stage.curl("/slow", &[])?;
    delayed.expect(200, "DI", &[], 1);
    assert!(delayed.took >= Duration::from_millis(400), "{delayed:?}");
    let preflight = ["-XOPTIONS", "-HOrigin: https://front.example.com"];
    let preflight = [&preflight[..], &["-HAccess-Control-Request-Method: PUT"]].concat();
    let allowed = "access-control-allow-origin: https://front.example.com\r\n";
    let methods = "access-control-allow-methods: put\r\n";
    stage.curl("/cors", &preflight)?.expect(200, "-", &[allowed, methods], 0);
    let simple = stage.curl("/cors", &["-HOrigin: https://front.example.com"])?;
    simple.expect(200, "-", &[allowed], 1);
    stage.curl("/delegated/deep", &[])?.expect(299, "-", &[], 0);
    stage.curl("/delegated/else", &[])?.expect(404, "NR", &[], 0);
    stage.curl("/nowhere", &[])?.expect(404, "NR", &[], 0);
    // The header match is missing.
    stage.curl("/rewritten", &[])?.expect(404, "NR", &[], 0);
    Ok(())
}

/// VS-30, VS-40, GAP-17.
fn times_and_repetitions(stage: &Stage<'_>) -> Result<()> {
    let late = stage.curl("/late", &[])?;
    late.expect(504, "UT", &["upstream request timeout"], 1);
    assert!(late.took < Duration::from_secs(4), "{late:?}");
    stage.curl("/again", &[])?.expect(503, "URX", &[], 3);
    // A rule that says so has a POST repeated too; without one, no answer is a reason.
    stage.curl("/again", &["-dx=1"])?.expect(503, "URX", &[], 3);
    stage.curl("/by-default", &[])?.expect(503, "-", &[], 1);
    Ok(())
}

/// VS-26, VS-27, VS-28.
fn changes(stage: &Stage<'_>) -> Result<()> {
    let arguments = ["-HX-Mode: inner", "-HX-Removed: 1", "-HX-Set: old"];
    let rewritten = stage.curl("/rewritten/x", &arguments)?;
    let texts = [r#""host": "inside.example.com""#, r#""x-set": "new""#, r#""x-added": "more""#];
    rewritten.expect(200, "-", &[&texts[..], &["x-answer: ours\r\n"]].concat(), 1);
    for gone in ["x-removed", "content-type", r#""old""#] {
        assert!(!rewritten.text.contains(gone), "{gone}: {rewritten:?}");
    }
    assert_eq!(rewritten.seen[0].path, "/headers/x");
    let before = stage.world.seen().len();
    let first = stage.curl("/mirrored", &["-dbody"])?;
    assert!(first.text.starts_with("http/1.1 200 "), "{first:?}");
    let deadline = Instant::now() + Duration::from_secs(5);
    let both = loop {
        let seen = stage.world.seen().split_off(before);
        if seen.len() == 2 || Instant::now() > deadline {
            break seen;
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    let mut places: Vec<_> = both.iter().map(|seen| seen.local.ip()).collect();
    places.sort();
    assert_eq!(places, [ONE, MIRROR], "{both:?}");
    assert!(both.iter().all(|seen| seen.path == "/mirrored"), "{both:?}");
    Ok(())
}

/// VS-22, DR-13, subsets.
fn destinations(stage: &Stage<'_>) -> Result<()> {
    let places = stage.places("/weights/", 120, &[])?;
    let one = at(&places, ONE);
    assert_eq!(one + at(&places, TWO), 120);
    assert!((10..55).contains(&one), "a quarter of 120, not {one}");
    let places = stage.places("/turns/", 10, &[])?;
    assert_eq!((at(&places, ONE), at(&places, TWO)), (5, 5), "{places:?}");
    let mut all = Vec::new();
    for user in 0..10 {
        let places = stage.places("/sticky/", 3, &[&format!("-HX-User: {user}")])?;
        assert_eq!(at(&places, places[0]), 3, "{places:?}");
        all.push(places[0]);
    }
    assert!(at(&all, ONE) > 0 && at(&all, TWO) > 0, "{all:?}");
    Ok(())
}

/// DR-10, LOG-50: of requests at the same time one passes, the others overflow.
fn limits(stage: &Stage<'_>) -> Result<()> {
    let url = format!("http://{SHOP}/narrow#[1-4]");
    let parallel = ["-sS", "-Z", "--parallel-immediate", "-w%{http_code} ", "-o/dev/null", &url];
    let outcome = stage.running.exec(&[&["curl"], &parallel[..]].concat(), 4)?;
    let mut codes: Vec<_> = outcome.finished.stdout.split_whitespace().collect();
    codes.sort_unstable();
    assert_eq!(codes, ["200", "503", "503", "503"], "{}", outcome.finished.stderr);
    let flags = outcome.log.iter().map(|line| Line::parse(line).expect("a line"));
    let overflowed = flags.filter(|line| line.field("RESPONSE_FLAGS") == "UO").count();
    assert_eq!(overflowed, 3, "{:?}", outcome.log);
    Ok(())
}

/// VS-14 to VS-16: rules for TLS by its name, and for TCP by its port.
fn without_http(stage: &Stage<'_>) -> Result<()> {
    let before = stage.world.seen().len();
    let command = ["curl", "-sS", "-w%{http_code}", "-o/dev/null", "https://shop.example.com/"];
    let tls = stage.running.exec(&command, 1)?;
    assert_eq!(tls.finished.stdout, "200", "{}", tls.finished.stderr);
    assert_eq!(stage.world.seen().split_off(before)[0].local.ip(), TWO);
    assert!(tls.log[0].contains("outbound|443|two|shop.example.com"), "{:?}", tls.log);
    let whoami = format!("{DIALLED}:17");
    let tcp = stage.running.exec(&[CLIENT, "listen", &whoami], 1)?;
    assert!(tcp.finished.stdout.contains(&format!("{TWO}:17 ")), "{:?}", tcp.finished);
    assert!(tcp.log[0].contains("outbound|17|two|shop.example.com"), "{:?}", tcp.log);
    Ok(())
}
