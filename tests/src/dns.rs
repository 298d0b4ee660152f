//! A stub DNS server, UDP and TCP, that answers from a table and counts what it was asked.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use hickory_proto::op::{Message, MessageType, ResponseCode};
use hickory_proto::rr::{RData, Record, RecordType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};

/// Seconds that an answer may be kept. Short, so that a test sees a changed table soon.
const TTL: u32 = 30;

/// The names that the stub knows, and how often each was asked for.
#[derive(Debug, Default)]
pub struct Zone {
    records: Mutex<BTreeMap<String, Vec<IpAddr>>>,
    queries: Mutex<HashMap<(String, RecordType), usize>>,
    rotating: Mutex<BTreeMap<String, Rotating>>,
    silent: AtomicBool,
}

/// Many addresses, of which an answer has some.
#[derive(Debug)]
struct Rotating {
    addresses: Vec<IpAddr>,
    at_a_time: usize,
    /// How long an answer stays the same, as if a cache gave it.
    each: Duration,
    first: usize,
    since: Instant,
}

impl Zone {
    /// Sets all addresses, of both families, of a name (no dot at its end). `*.x` answers for
    /// every name below `x` that has no entry of its own.
    pub fn set(&self, name: &str, addresses: &[IpAddr]) {
        let mut records = self.records.lock().unwrap_or_else(PoisonError::into_inner);
        records.insert(name.to_ascii_lowercase(), addresses.to_vec());
    }

    /// Forgets a name: NXDOMAIN from now on.
    pub fn remove(&self, name: &str) {
        let mut records = self.records.lock().unwrap_or_else(PoisonError::into_inner);
        records.remove(&name.to_ascii_lowercase());
    }

    /// Answers nothing from now on, or answers again.
    pub fn set_silent(&self, silent: bool) {
        self.silent.store(silent, Ordering::Relaxed);
    }

    /// Sets a name whose answers have `at_a_time` of `addresses`, other ones after `each`; they may be
    /// kept for a second.
    pub fn rotate(&self, name: &str, addresses: Vec<IpAddr>, at_a_time: usize, each: Duration) {
        let rotating = Rotating { addresses, at_a_time, each, first: 0, since: Instant::now() };
        let mut all = self.rotating.lock().unwrap_or_else(PoisonError::into_inner);
        all.insert(name.to_ascii_lowercase(), rotating);
    }

    /// The addresses of a rotating name now.
    fn turn(&self, name: &str) -> Option<Vec<IpAddr>> {
        let mut all = self.rotating.lock().unwrap_or_else(PoisonError::into_inner);
        let one = all.get_mut(name)?;
        if one.since.elapsed() >= one.each {
            one.since = Instant::now();
            one.first += one.at_a_time;
        }
        let addresses = one.addresses.iter().cycle().skip(one.first % one.addresses.len().max(1));
        Some(addresses.take(one.at_a_time).copied().collect())
    }

    /// How many queries of any type there were for a name.
    #[must_use]
    pub fn queries(&self, name: &str) -> usize {
        let name = name.to_ascii_lowercase();
        let queries = self.queries.lock().unwrap_or_else(PoisonError::into_inner);
        queries.iter().filter(|((asked, _), _)| *asked == name).map(|(_, count)| count).sum()
    }

    /// The addresses of a name, `None` when it doesn't exist.
    #[must_use]
    pub fn lookup(&self, name: &str) -> Option<Vec<IpAddr>> {
        let records = self.records.lock().unwrap_or_else(PoisonError::into_inner);
        let parents = name.match_indices('.').map(|(dot, _)| format!("*{}", &name[dot..]));
        std::iter::once(name.to_owned()).chain(parents).find_map(|key| records.get(&key).cloned())
    }

    /// The answer to one query; `None` for bytes that aren't one, and while it is silent.
    fn answer(&self, query: &[u8]) -> Option<Vec<u8>> {
        if self.silent.load(Ordering::Relaxed) {
            return None;
        }
        let query = Message::from_vec(query).ok()?;
        if query.metadata.message_type != MessageType::Query {
            return None;
        }
        let question = query.queries.first()?.clone();
        let name = question.name().to_ascii().trim_end_matches('.').to_ascii_lowercase();
        {
            let mut queries = self.queries.lock().unwrap_or_else(PoisonError::into_inner);
            *queries.entry((name.clone(), question.query_type())).or_default() += 1;
        }
        let mut answer = Message::response(query.metadata.id, query.metadata.op_code);
        answer.metadata.recursion_desired = query.metadata.recursion_desired;
        answer.metadata.recursion_available = true;
        let turn = self.turn(&name);
        let ttl = if turn.is_some() { 1 } else { TTL };
        match turn.or_else(|| self.lookup(&name)) {
            None => answer.metadata.response_code = ResponseCode::NXDomain,
            Some(addresses) => {
                for address in addresses {
                    let data = match (address, question.query_type()) {
                        (IpAddr::V4(v4), RecordType::A) => RData::A(v4.into()),
                        (IpAddr::V6(v6), RecordType::AAAA) => RData::AAAA(v6.into()),
                        _ => continue,
                    };
                    answer.add_answer(Record::from_rdata(question.name().clone(), ttl, data));
                }
            }
        }
        answer.add_query(question);
        answer.to_vec().ok()
    }
}

/// Serves the zone on one address, UDP and TCP, until the runtime ends. Called on a thread that
/// is in the namespace that owns the address.
///
/// # Errors
/// When a socket can't be bound.
pub async fn serve(zone: Arc<Zone>, at: SocketAddr) -> Result<()> {
    let udp = UdpSocket::bind(at).await.with_context(|| format!("DNS on {at}/udp"))?;
    let tcp = TcpListener::bind(at).await.with_context(|| format!("DNS on {at}/tcp"))?;
    tokio::spawn(serve_udp(Arc::clone(&zone), udp));
    tokio::spawn(async move {
        while let Ok((stream, _)) = tcp.accept().await {
            tokio::spawn(serve_tcp(Arc::clone(&zone), stream));
        }
    });
    Ok(())
}

async fn serve_udp(zone: Arc<Zone>, socket: UdpSocket) {
    let mut buffer = [0; 1500];
    // An error here is an ICMP message about an earlier answer: nothing to act on.
    loop {
        if let Ok((length, client)) = socket.recv_from(&mut buffer).await
            && let Some(answer) = zone.answer(&buffer[..length])
        {
            let _ = socket.send_to(&answer, client).await;
        }
    }
}

/// Messages over TCP carry their length in front (RFC 1035, 4.2.2).
async fn serve_tcp(zone: Arc<Zone>, mut stream: TcpStream) {
    while let Ok(length) = stream.read_u16().await {
        let mut query = vec![0; usize::from(length)];
        if stream.read_exact(&mut query).await.is_err() {
            return;
        }
        let Some(answer) = zone.answer(&query) else { return };
        let Ok(length) = u16::try_from(answer.len()) else { return };
        if stream.write_u16(length).await.is_err() || stream.write_all(&answer).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_proto::op::Query;
    use hickory_proto::rr::Name;

    fn ask(zone: &Zone, name: &str, kind: RecordType) -> (ResponseCode, Vec<RData>) {
        let mut query = Message::query();
        query.add_query(Query::query(Name::from_ascii(name).expect("a name"), kind));
        let answer = zone.answer(&query.to_vec().expect("bytes")).expect("an answer");
        let answer = Message::from_vec(&answer).expect("a message");
        (answer.metadata.response_code, answer.answers.into_iter().map(|r| r.data).collect())
    }

    #[test]
    fn answers_exact_names_then_wildcards_then_nothing() {
        let zone = Zone::default();
        let (one, two) = ("192.0.2.1".parse().expect("v4"), "2001:db8::2".parse().expect("v6"));
        zone.set("example.org", &[one, two]);
        zone.set("*.example.org", &[two]);

        let (code, v4) = ask(&zone, "EXAMPLE.org.", RecordType::A);
        assert_eq!((code, v4.len()), (ResponseCode::NoError, 1));
        assert_eq!(ask(&zone, "example.org.", RecordType::AAAA).1.len(), 1);
        assert_eq!(ask(&zone, "a.b.example.org.", RecordType::AAAA).1.len(), 1);
        assert_eq!(
            ask(&zone, "a.example.org.", RecordType::A),
            (ResponseCode::NoError, vec![]),
            "the name exists, the family doesn't"
        );
        assert_eq!(ask(&zone, "example.net.", RecordType::A).0, ResponseCode::NXDomain);
        assert_eq!(zone.queries("example.org"), 2);
        assert_eq!(zone.queries("never.example.org"), 0);
        assert!(zone.answer(b"not a message").is_none());

        zone.rotate("example.org", vec![one, two, one], 2, Duration::ZERO);
        assert_eq!(ask(&zone, "example.org.", RecordType::A).1.len(), 2);
        assert_eq!(ask(&zone, "example.org.", RecordType::A).1.len(), 1);
    }
}
