//! What the gateway answers by itself, and after which answers a connection goes on.

use std::io::{self, ErrorKind};
use std::time::Duration;

use bytes::Bytes;
use clawgress_ebpf_common::DropReason;
use http::StatusCode;
use pingora_error::{Error, ErrorType, Result};
use pingora_http::ResponseHeader;
use pingora_proxy::Session;

use super::Context;
use super::conversation::Conversation;
use crate::limit;
use crate::page::{self, Client, Denial, Form};

/// How a denial is told, besides its reason.
#[derive(Debug, Default)]
pub struct Answered {
    /// Whether the connection lives on.
    pub reusable: bool,
    /// After what time another try may pass.
    pub retry_after: Option<Duration>,
    /// What is said instead of a page, in the terms of the protocol within, and with what status.
    pub denial: Option<(u16, String)>,
}

/// Whether the client says that it takes JSON: one of MCP that waits for its answer elsewhere does not.
pub fn takes_json(session: &Session) -> bool {
    let accepts = session.req_header().headers.get_all("accept");
    accepts.iter().any(|value| value.to_str().is_ok_and(|value| value.contains("application/json")))
}

/// What its client was answered; interim answers are none (RFC 9110 section 15.2), but for the one behind which there is no HTTP.
pub fn status_answered(session: &Session) -> Option<StatusCode> {
    let status = session.response_written()?.status;
    (!status.is_informational() || status == StatusCode::SWITCHING_PROTOCOLS).then_some(status)
}

/// Says why, as a response.
pub async fn respond(
    session: &mut Session,
    denied: Denial<'_>,
    client: Client,
    Answered { reusable, retry_after, denial }: Answered,
) -> Result<()> {
    let (status, form, body) = match denial {
        Some((status, denial)) => (status, Form::Json, denial),
        None => {
            let form = page::form(&session.req_header().headers);
            (page::status_as(client, denied.reason), form, denied.body(client, form))
        }
    };
    let mut header = ResponseHeader::build(status, Some(8))?;
    header.insert_header("content-type", form.media_type())?;
    header.insert_header("content-length", body.len().to_string())?;
    header.insert_header("cache-control", "no-store")?;
    for (name, value) in denied.fields() {
        header.insert_header(name, value)?;
    }
    if let Some(wait) = retry_after {
        header.insert_header("retry-after", page::seconds(wait))?;
    }
    if status == 401 {
        header.insert_header("www-authenticate", page::ENDPOINT_CHALLENGE)?;
    }
    if status == 407 {
        for challenge in page::CHALLENGES {
            header.append_header("proxy-authenticate", challenge)?;
        }
    }
    if reusable {
        // The rest of the body is read and thrown away, for a short time.
        session.set_close_on_response_before_downstream_finish(false);
    } else {
        session.set_keepalive(None);
    }
    session.write_response_header(Box::new(header), false).await?;
    session.write_response_body(Some(Bytes::from(body)), true).await
}

/// The same as bytes of HTTP/1, in place of an answer whose head has been written and waits.
#[must_use]
pub fn page_as_bytes(client: Client, denied: Denial<'_>, form: Form, is_last: bool) -> Vec<u8> {
    let (status, body) = (page::status_as(client, denied.reason), denied.body(client, form));
    let name = StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason());
    let close = if is_last { "connection: close\r\n" } else { "" };
    let told: String = denied.fields().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let fields = format!(
        "HTTP/1.1 {status} {}\r\ncontent-type: {}\r\ncontent-length: {}\r\ncache-control: no-store\r\n{told}{close}\r\n",
        name.unwrap_or_default(),
        form.media_type(),
        body.len(),
    );
    [fields.as_bytes(), body.as_ref()].concat()
}

/// Lets what follows through as a WebSocket's messages, if that is what the server has begun.
pub fn switch(session: &mut Session, response: &ResponseHeader, context: &mut Context) -> Result<()> {
    let opens = context.granted.as_ref().is_some_and(|granted| granted.opens_web_socket());
    let upgrade = response.headers.get("upgrade").map(|v| v.as_bytes());
    let is_one = upgrade.is_some_and(|v| v.eq_ignore_ascii_case(b"websocket"));
    let Some(front) = context.front.as_ref().filter(|_| opens && is_one) else {
        context.reason = Some(DropReason::UpstreamFailed);
        return Error::e_explain(ErrorType::HTTPStatus(502), "a protocol that nobody asked for");
    };
    if let (Some(granted), Some(gateway)) = (&context.granted, &context.gateway)
        && granted.reads().any()
    {
        if response.headers.contains_key("sec-websocket-extensions") {
            context.reason = Some(DropReason::UpstreamFailed);
            return Error::e_explain(ErrorType::HTTPStatus(502), "an extension that nobody asked for");
        }
        context.conversation = Some(Box::new(Conversation::new(gateway, granted)));
    }
    session.set_read_timeout(Some(limit::TUNNEL_IDLE));
    front.upgrade();
    Ok(())
}

/// Whether it is that a client takes its time, in what it sends or in what it takes.
pub fn is_late(error: &Error) -> bool {
    let cause = error.root_cause().downcast_ref::<io::Error>();
    matches!(error.etype(), ErrorType::ReadTimedout | ErrorType::WriteTimedout)
        || cause.is_some_and(|cause| cause.kind() == ErrorKind::TimedOut)
}

/// Whether it is why one attempt to connect failed, and another may not.
pub fn is_of_attempt(reason: DropReason) -> bool {
    matches!(reason, DropReason::UpstreamUntrusted | DropReason::ParentFailed)
}

/// Whether a connection failed because its server did not prove its name. Pingora tells it in words alone.
pub fn is_untrusted(error: &Error) -> bool {
    *error.root_etype() == ErrorType::TLSHandshakeFailure
        && error.to_string().contains("invalid peer certificate")
}

/// Whether a connection failed by the doing of a parent proxy.
pub fn is_of_parent(error: &Error) -> bool {
    *error.root_etype() == ErrorType::Custom(DropReason::ParentFailed.name())
}

/// Whether a stream failed since its server's connection of HTTP/2 has ended: what it asked may have been looked at or not.
pub fn has_ended(error: &Error) -> bool {
    let cause = error.root_cause().downcast_ref::<h2::Error>();
    *error.root_etype() == ErrorType::H2Error
        && cause.is_some_and(|cause| cause.is_io() || cause.is_go_away() && cause.is_remote())
}

/// Whether the connection is sound after a denial for `reason`.
pub fn reusable(reason: DropReason) -> bool {
    !matches!(
        reason,
        DropReason::HttpMalformed
            | DropReason::EndpointUnknown
            | DropReason::SniMismatch
            | DropReason::Timeout
            | DropReason::UpgradeUnsupported
    )
}

/// Whether a denial for `reason` says that the client is nobody.
pub fn is_stranger(reason: DropReason) -> bool {
    matches!(
        reason,
        DropReason::CredentialMissing
            | DropReason::CredentialInvalid
            | DropReason::IdentityConflict
            | DropReason::Anonymous
            | DropReason::AgentUnknown
            | DropReason::AgentDisabled
            | DropReason::AgentQuarantined
    )
}
