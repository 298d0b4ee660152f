//! What `interceptor-test-client` can do: one job a run, its result on one line.

mod bulk;
mod crowd;
mod detour;
mod dwell;
mod escape;
mod linger;
mod plain;
mod probe;
mod protocols;
mod tls;

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4};
use std::time::Duration;

use anyhow::Result;
use clap::Subcommand;

pub use crowd::Manner;
pub use dwell::Dwell;
pub use escape::{Frame, Way};

/// How long a peer may keep a job waiting.
const PATIENCE: Duration = Duration::from_secs(10);

/// One way of using a socket.
#[derive(Clone, Debug, Subcommand)]
pub enum Job {
    /// One HTTP request to an address; prints the status, the peer's and the own address
    Get {
        /// Where to
        to: SocketAddr,
        /// The Host header
        host: String,
        /// How the socket is made and connected
        #[arg(long, value_enum, default_value_t = Style::Blocking)]
        style: Style,
    },
    /// Many HTTP requests, each on a connection of its own; the Host header names the address
    /// that was dialled (see `name_of`); prints how often each status came
    Many {
        /// The first address; the others follow it
        first: IpAddr,
        /// How many addresses in turn
        #[arg(long, default_value_t = 200)]
        addresses: u16,
        /// How many connections
        #[arg(long)]
        count: usize,
        /// How many at the same time
        #[arg(long, default_value_t = 1)]
        concurrency: usize,
        /// How each ends
        #[arg(long, value_enum, default_value_t = End::Read)]
        end: End,
    },
    /// Reads what a server says first; prints it and after how many milliseconds it came
    Listen {
        /// Where to
        to: SocketAddr,
    },
    /// A TLS handshake whose hello is cut in pieces, then one HTTP request; prints the status
    Hello {
        /// Where to
        to: SocketAddr,
        /// The name in the hello
        name: String,
        /// Bytes of each send; 0: all at once
        #[arg(long, default_value_t = 0)]
        segment: usize,
        /// Handshake bytes of each TLS record; 0: as the library made them
        #[arg(long, default_value_t = 0)]
        record: usize,
        /// Milliseconds between sends
        #[arg(long, default_value_t = 0)]
        pause: u64,
        /// Makes the hello at least this many bytes long
        #[arg(long, default_value_t = 0)]
        grow: usize,
        /// Sends one more byte, as urgent, behind so many of the hello
        #[arg(long)]
        urgent: Option<usize>,
    },
    /// A TLS handshake, then nothing, until the other end closes; a reset is a failure
    Hold {
        /// Where to
        to: SocketAddr,
        /// The name in the hello
        name: String,
    },
    /// Sends a TLS hello and so many bytes of the pattern to an echo service, ends its direction,
    /// and compares what comes back to the end; prints `BYTES intact`
    Echo {
        /// Where to
        to: SocketAddr,
        /// The name in the hello; without it, no hello is sent
        #[arg(long)]
        name: Option<String>,
        /// The hello offers encrypted_client_hello
        #[arg(long, requires = "name")]
        ech: bool,
        /// Bytes of the pattern
        #[arg(long)]
        bytes: u64,
    },
    /// Sends one datagram; prints `reply`, `silence`, or the error's name
    Datagram {
        /// Where to
        to: SocketAddr,
        /// Connects the socket first
        #[arg(long)]
        connect: bool,
    },
    /// Sends one ICMP echo request; prints `reply`, `silence`, or the error's name
    Ping {
        /// Where to
        to: Ipv4Addr,
    },
    /// Sends TCP packets by way of another host, with a routing header; prints `sent` or the
    /// error's name
    RoutingHeader {
        /// Where to, as far as the socket knows
        to: SocketAddr,
        /// Whom the packets pass
        via: Ipv6Addr,
        /// When the header is put on
        #[arg(long, value_enum)]
        when: When,
    },
    /// gRPC calls: one answered, one refused in its trailers, one streamed, one streamed both ways
    Grpc {
        /// Where to
        to: SocketAddr,
        /// Host and port, as the client knows them
        authority: String,
    },
    /// A WebSocket to an echo service
    WebSocket {
        /// Where to
        to: SocketAddr,
        /// Host and port, as the client knows them
        host: String,
        /// Messages of each kind
        #[arg(long, default_value_t = 20)]
        count: usize,
    },
    /// Many requests on one connection, for several hosts in turn
    Alternate {
        /// Where to
        to: SocketAddr,
        /// The hosts
        hosts: Vec<String>,
        /// How many requests in all
        #[arg(long)]
        count: usize,
    },
    /// Uploads bytes of the pattern in one HTTP request; prints what the server says of them
    Upload {
        /// Where to
        to: SocketAddr,
        /// The Host header
        host: String,
        /// How many
        bytes: u64,
    },
    /// Downloads bytes of the pattern in one HTTP answer and compares them; prints `BYTES intact`
    Download {
        /// Where to
        to: SocketAddr,
        /// The Host header
        host: String,
        /// How many
        bytes: u64,
    },
    /// Makes every connection that a file lists, and prints what became of each (see `probe.rs`)
    Probe {
        /// One connection a line
        file: String,
        /// How many at the same time
        #[arg(long, default_value_t = 1)]
        threads: usize,
    },
    /// Stays until it is killed: keeps connections, makes others again and again, and reports
    Dwell(Dwell),
    /// Many connections at once; prints `connected`, and at the end how often each end came
    Crowd {
        /// Where to
        to: SocketAddr,
        /// How many
        #[arg(long)]
        count: usize,
        /// What each does
        #[arg(long, value_enum)]
        manner: Manner,
    },
    /// HTTP requests, each on a connection of its own, until standard input ends; prints how often
    /// each status came
    Steady {
        /// Where to
        to: SocketAddr,
        /// The Host header
        host: String,
        /// Over TLS, by that name
        #[arg(long)]
        tls: bool,
    },
    /// One HTTP connection with a request now and then, until the other end, or that of standard
    /// input; prints how often it was answered, and who ended it
    Linger {
        /// Where to
        to: SocketAddr,
        /// The Host header
        host: String,
        /// By HTTP/2, in plaintext
        #[arg(long)]
        http2: bool,
    },
    /// Sends a packet past the socket hooks; prints `sent` or the error's name
    Escape {
        /// How
        way: Way,
        /// Where to
        to: SocketAddrV4,
        /// What frames made by hand say
        #[command(flatten)]
        frame: Frame,
    },
    /// Uses a socket of somebody else's; prints `sent` or the error's name
    Borrow {
        /// The unix socket by which it is lent
        from: String,
        /// Where to
        to: SocketAddr,
        /// It is a datagram socket, else a TCP socket that isn't connected
        #[arg(long)]
        udp: bool,
    },
    /// Says `serving`, accepts one connection and sends back what comes; prints `BYTES served`
    Serve {
        /// At this address
        at: SocketAddr,
    },
    /// Only connects; prints `connected` or the error's name
    Connect {
        /// Where to
        to: SocketAddr,
    },
}

/// How a socket is made and connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Style {
    /// In the ordinary way
    Blocking,
    /// Non-blocking: connect says "in progress", poll says when it is done
    NonBlocking,
    /// An IPv6 socket that dials an IPv4 address
    Mapped,
}

/// When [`Job::RoutingHeader`] puts its header on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum When {
    /// Before the connect: the SYN has it already
    BeforeConnect,
    /// On an open connection to the client itself, over loopback
    OverLoopback,
}

/// How a connection of [`Job::Many`] ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum End {
    /// The answer is read to its end
    Read,
    /// Closed directly after the request was sent
    Close,
    /// Reset directly after the request was sent; the next one uses the same source port
    Reset,
}

/// The host name by which [`Job::Many`] calls an address: `203.0.113.7` is
/// `h-203-0-113-7.example.net`, so that a log line proves its own destination.
#[must_use]
pub fn name_of(address: IpAddr) -> String {
    format!("h-{}.example.net", address.to_string().replace([':', '.'], "-"))
}

/// The `index`th address from `first` on.
#[must_use]
pub fn nth_address(first: IpAddr, index: u16) -> IpAddr {
    match first {
        IpAddr::V4(v4) => IpAddr::V4((v4.to_bits() + u32::from(index)).into()),
        IpAddr::V6(v6) => IpAddr::V6((v6.to_bits() + u128::from(index)).into()),
    }
}

/// Does one job; the text is its result.
///
/// # Errors
/// When something came otherwise than the job's words say.
pub fn run(job: Job) -> Result<String> {
    match job {
        Job::Get { to, host, style } => plain::get(to, &host, style),
        Job::Many { first, addresses, count, concurrency, end } => {
            plain::many(first, addresses, count, concurrency, end)
        }
        Job::Listen { to } => plain::listen(to),
        Job::Hello { to, name, segment, record, pause, grow, urgent } => {
            let pause = Duration::from_millis(pause);
            let cut = tls::Cut { segment, record, pause, grow, urgent };
            tls::hello(to, &name, cut)
        }
        Job::Hold { to, name } => tls::hold(to, &name),
        Job::Echo { to, name, ech, bytes } => tls::echo(to, name.as_deref(), ech, bytes),
        Job::Datagram { to, connect } => plain::datagram(to, connect),
        Job::Ping { to } => plain::ping(to),
        Job::Grpc { to, authority } => protocols::grpc(to, &authority),
        Job::WebSocket { to, host, count } => protocols::websocket(to, &host, count),
        Job::Alternate { to, hosts, count } => protocols::alternate(to, &hosts, count),
        Job::RoutingHeader { to, via, when } => detour::routing_header(to, via, when),
        Job::Upload { to, host, bytes } => bulk::upload(to, &host, bytes),
        Job::Download { to, host, bytes } => bulk::download(to, &host, bytes),
        Job::Probe { file, threads } => probe::probe(&file, threads),
        Job::Dwell(what) => dwell::dwell(&what),
        Job::Crowd { to, count, manner } => crowd::crowd(to, count, manner),
        Job::Steady { to, host, tls } => crowd::steady(to, &host, tls),
        Job::Linger { to, host, http2 } => linger::linger(to, &host, http2),
        Job::Escape { way, to, frame } => escape::escape(way, to, &frame),
        Job::Borrow { from, to, udp } => escape::borrow(&from, to, udp),
        Job::Serve { at } => escape::serve(at),
        Job::Connect { to } => plain::connect(to),
    }
}

/// The error as its C name, `EPERM`, or as a sentence where it has none.
fn error_name(error: &io::Error) -> String {
    error.raw_os_error().map_or_else(
        || error.to_string(),
        |code| format!("{:?}", nix::errno::Errno::from_raw(code)),
    )
}
