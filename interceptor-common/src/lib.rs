#![no_std]
//! contract
