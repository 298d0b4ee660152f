//! How a refusal of a connection looks to the client. (Refused HTTP requests: `http.rs`.)

use tokio::net::TcpStream;

/// Ends the connection with FIN and without an answer (curl over TLS: exit 35).
pub async fn close(_client: TcpStream) {
    todo!()
}

/// Ends the connection with RST.
pub fn reset(_client: TcpStream) {
    todo!()
}
