//! Interceptor: every outbound connection of the workloads it covers is caught in the kernel,
//! decided by Istio's own resources, and accounted for.
//!
//! The modules stand in the order in which a connection meets them; [`conn`] is the only one that
//! knows that order. What stands beside the path follows after.
#![deny(unsafe_code)]

pub mod accept;
pub mod admit;
pub mod origin;
pub mod sniff;
pub mod decide;
pub mod act;
pub mod account;
pub mod conn;

pub mod kernel;
pub mod policy;
pub mod resolve;
pub mod tiers;
pub mod workloads;
pub mod netns;
pub mod descriptors;
pub mod drain;

pub mod gateway;
pub mod hbone;

pub mod agent;
pub mod cni;
pub mod scenario;
pub mod selftest;

pub mod admin;
pub mod explain;
pub mod app;
pub mod cli;

mod clock;
mod files;
mod memory;

#[cfg(any(test, fuzzing))]
pub mod fuzzing;
