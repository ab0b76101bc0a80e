//! Calls to the admin socket, with failures that say what to do.

use std::path::{Path, PathBuf};

use clawgress_api::MESSAGE_BYTES_MAX;
use clawgress_api::proto::admin_client::AdminClient;
use clawgress_api::proto::{Document, Documents};
use clawgress_api::socket;
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
        let probe = UnixStream::connect(&self.socket).await;
        probe.map_err(|e| Failure::connect(&self.socket, &e))?;
        let channel = socket::channel(&self.socket).map_err(|e| Failure::Unreachable(e.to_string()))?;
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
