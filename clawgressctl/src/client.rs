//! Calls to the admin socket, with failures that say what to do.

use std::env;
use std::path::{Path, PathBuf};

use clawgress_api::MESSAGE_BYTES_MAX;
use clawgress_api::config::{self, Access, Config};
use clawgress_api::proto::admin_client::AdminClient;
use clawgress_api::proto::{Document, Documents};
use clawgress_api::socket::{self, Server, Servers};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tonic::transport::Channel;
use tonic::{Response, Status};

use crate::failure::Failure;

/// The way to the agent.
pub struct Client {
    socket: PathBuf,
}

// === impl Client ===

impl Client {
    pub fn new(socket: PathBuf) -> Self {
        Client { socket }
    }

    /// Connects; a failure here names its cause better than one in the middle of a call.
    pub async fn connect(&self) -> Result<AdminClient<Channel>, Failure> {
        let servers = Servers::new(&access(), Server::Control);
        let servers = servers.map_err(|e| Failure::Refused(e.to_string()))?;
        let probe = UnixStream::connect(&self.socket).await;
        let probe = probe.map_err(|e| Failure::connect(&self.socket, &e))?;
        servers.check(&probe, &self.socket).map_err(|e| Failure::Refused(e.to_string()))?;
        let channel = socket::channel_to(&self.socket, servers);
        Ok(AdminClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX))
    }

    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// What a call came back with.
    pub fn answer<T>(&self, answer: Result<Response<T>, Status>) -> Result<T, Failure> {
        answer.map(Response::into_inner).map_err(|status| Failure::call(&self.socket, &status))
    }

    /// The document that a call came back with.
    pub fn document<T: DeserializeOwned>(
        &self,
        answer: Result<Response<Document>, Status>,
    ) -> Result<T, Failure> {
        parse(&self.answer(answer)?.json)
    }

    /// The documents that a call came back with.
    pub fn documents<T: DeserializeOwned>(
        &self,
        answer: Result<Response<Documents>, Status>,
    ) -> Result<Vec<T>, Failure> {
        self.answer(answer)?.json.iter().map(|json| parse(json)).collect()
    }
}

/// Who runs the agent: by its configuration if that can be read, else by default.
fn access() -> Access {
    let path = env::var_os("CLAWGRESS_CONFIG").map_or_else(|| PathBuf::from(config::PATH), PathBuf::from);
    Config::load(&path).map(|config| config.access).unwrap_or_default()
}

/// A request's document.
pub fn request(value: &impl Serialize) -> Result<Document, Failure> {
    let json = serde_json::to_vec(value).map_err(|e| Failure::Refused(e.to_string()))?;
    Ok(Document { json })
}

/// An answer's document.
pub fn parse<T: DeserializeOwned>(json: &[u8]) -> Result<T, Failure> {
    serde_json::from_slice(json).map_err(|e| {
        Failure::Refused(format!("the agent's answer is not understood ({e}); is it of the same version?"))
    })
}
