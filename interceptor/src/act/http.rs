//! HTTP/1.1 on a workload's connection: every request is judged on its own (R5), re-serialised from
//! its parsed form (R4), and leaves one access-log line.

use std::sync::Arc;

use tokio::net::TcpStream;

use crate::account::AccessLog;
use crate::act::dial::Dialer;
use crate::origin::Origin;
use crate::policy::Store;
use crate::sniff::prefixed::Prefixed;

/// What serving needs besides the connection itself.
#[derive(Debug, Clone)]
pub struct HttpContext {
    /// Opens upstream connections.
    pub dialer: Dialer,
    /// The newest policy; read anew for each request.
    pub policy: Arc<Store>,
    /// Where lines go.
    pub log: AccessLog,
}

/// Serves `client` until it ends.
pub async fn serve(_client: Prefixed<TcpStream>, _origin: Origin, _context: HttpContext) {
    todo!()
}
