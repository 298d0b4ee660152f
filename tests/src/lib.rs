//! The test harness: a small internet in network namespaces, and the product run inside it.
//!
//! The product is a black box here: its binary, its command line, its access log, and the packets
//! that do or do not arrive at the far side. Everything that this library makes (namespaces,
//! links, threads, files) goes away when its guard is dropped, on a panic too; what a killed
//! run left behind is swept at the next start.
//!
//! Start with [`world::World`].

pub mod ca;
pub mod capture;
pub mod cgroup;
pub mod client;
pub mod cluster;
pub mod containers;
pub mod dns;
pub mod dweller;
pub mod gateway;
pub mod held;
pub mod hellos;
pub mod live;
pub mod log;
pub mod malformed;
pub mod netns;
pub mod node;
pub mod ongoing;
pub mod outcome;
pub mod pattern;
pub mod pod;
pub mod probe;
pub mod process;
pub mod product;
pub mod proxies;
pub mod rewriter;
pub mod servers;
pub mod shapes;
pub mod snapshot;
pub mod tamper;
pub mod torture;
pub mod walkthrough;
pub mod world;
