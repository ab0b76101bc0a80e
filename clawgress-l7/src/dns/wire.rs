//! Answers as they are sent: built anew, never passed through, and no larger than their client takes.

use clawgress_ebpf_common::DropReason;
use clawgress_inspect::dns::Question;
use hickory_resolver::proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_resolver::proto::rr::rdata::opt::{EdnsCode, EdnsOption};
use hickory_resolver::proto::rr::{Name, Record, RecordType};
use hickory_resolver::proto::serialize::binary::BinDecodable as _;

/// Largest datagram of an answer, bytes: what reaches everybody unfragmented (DNS flag day 2020).
pub const DATAGRAM_BYTES_MAX: u16 = 1232;
/// Largest datagram for who says nothing of EDNS, bytes (RFC 1035 2.3.4).
const DATAGRAM_BYTES_PLAIN: u16 = 512;
/// Option code of an extended error (RFC 8914 2).
const EXTENDED_ERROR: u16 = 15;
/// `Blocked`: by policy of whoever operates the server (RFC 8914 4.16).
const BLOCKED: u16 = 15;
/// `Prohibited`: the client may not ask here (RFC 8914 4.19).
const PROHIBITED: u16 = 18;

/// How an answer travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carriage {
    /// In a datagram.
    Udp,
    /// On a connection.
    Tcp,
}

/// What an answer says.
#[derive(Clone, Debug)]
pub struct Said {
    /// Response code.
    pub code: ResponseCode,
    /// Answers.
    pub answers: Vec<Record>,
    /// Authorities: the SOA record of a negative answer.
    pub authorities: Vec<Record>,
    /// Why it is refused, for people: the code of an extended error and its text.
    pub error: Option<(u16, String)>,
}

// === impl Carriage ===

impl Carriage {
    /// As records name it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Carriage::Udp => "udp",
            Carriage::Tcp => "tcp",
        }
    }
}

// === impl Said ===

impl Said {
    /// A response code and nothing else.
    #[must_use]
    pub fn only(code: ResponseCode) -> Self {
        Said { code, answers: Vec::new(), authorities: Vec::new(), error: None }
    }

    /// The refusal of `request` for this reason.
    #[must_use]
    pub fn refused(reason: DropReason, request: &str) -> Self {
        let code = match reason {
            // Another server, or the same a little later, may know it.
            DropReason::ResolveFailed
            | DropReason::Overloaded
            | DropReason::AuditUnavailable
            | DropReason::Timeout => ResponseCode::ServFail,
            _ => ResponseCode::Refused,
        };
        let info = match reason {
            DropReason::Anonymous | DropReason::AgentDisabled | DropReason::AgentQuarantined => PROHIBITED,
            _ => BLOCKED,
        };
        let error = (code == ResponseCode::Refused).then(|| (info, format!("{reason}; request {request}")));
        Said { error, ..Said::only(code) }
    }

    /// The answer to `question`. What doesn't fit a datagram is left out whole, and says so: the client asks again over
    /// TCP. `None` if it can't be written.
    #[must_use]
    pub fn answer(self, question: &Question, carriage: Carriage) -> Option<Vec<u8>> {
        let name = Name::from_bytes(&question.wire_name).ok()?;
        let mut message = Message::new(question.id, MessageType::Response, OpCode::Query);
        message.add_query(Query::query(name, RecordType::from(question.kind)));
        message.metadata.recursion_desired = question.recursion_desired;
        message.metadata.recursion_available = true;
        message.metadata.response_code = self.code;
        message.add_answers(self.answers);
        message.add_authorities(self.authorities);
        let offered = question.edns.map_or(DATAGRAM_BYTES_PLAIN, |edns| edns.payload_bytes);
        if question.edns.is_some() {
            let mut edns = Edns::new();
            edns.set_max_payload(DATAGRAM_BYTES_MAX);
            if let Some((info, text)) = self.error {
                let mut bytes = info.to_be_bytes().to_vec();
                bytes.extend(text.bytes());
                let code = EdnsCode::Unknown(EXTENDED_ERROR);
                edns.options_mut().options.push((code, EdnsOption::Unknown(EXTENDED_ERROR, bytes)));
            }
            message.set_edns(edns);
        }
        let bytes = message.to_vec().ok()?;
        let most = match carriage {
            Carriage::Udp => offered.clamp(DATAGRAM_BYTES_PLAIN, DATAGRAM_BYTES_MAX),
            Carriage::Tcp => u16::MAX,
        };
        if bytes.len() <= usize::from(most) {
            return Some(bytes);
        }
        message.answers.clear();
        message.authorities.clear();
        message.metadata.truncation = true;
        message.to_vec().ok().filter(|bytes| bytes.len() <= usize::from(most))
    }
}

/// The answer to what is no question that could be repeated: a header, and nothing of the client's in it but its id and operation.
/// `None` if it can't be written.
#[must_use]
pub fn bare(id: u16, operation: u8, code: ResponseCode) -> Option<Vec<u8>> {
    let mut message = Message::new(id, MessageType::Response, OpCode::from_u8(operation));
    message.metadata.response_code = code;
    if code == ResponseCode::BADVERS {
        let mut edns = Edns::new();
        edns.set_max_payload(DATAGRAM_BYTES_MAX).set_rcode_high(1);
        message.set_edns(edns);
    }
    message.to_vec().ok()
}

#[cfg(test)]
mod tests {
    use clawgress_inspect::dns::{Edns as Asked, question};
    use hickory_resolver::proto::rr::RData;
    use hickory_resolver::proto::rr::rdata::A;

    use super::*;

    fn asked(payload_bytes: Option<u16>) -> Question {
        Question {
            id: 7,
            wire_name: b"\x03wWw\x07Allowed\x04test\x00".to_vec(),
            name: Some("www.allowed.test".to_owned()),
            kind: 1,
            recursion_desired: true,
            edns: payload_bytes.map(|payload_bytes| Asked { payload_bytes }),
        }
    }

    fn said(addresses: u8) -> Said {
        let name = Name::from_ascii("www.allowed.test.").expect("name");
        let record = |n| Record::from_rdata(name.clone(), 60, RData::A(A::new(203, 0, 113, n)));
        Said { answers: (0..addresses).map(record).collect(), ..Said::only(ResponseCode::NoError) }
    }

    #[test]
    fn an_answer_repeats_its_question_and_nothing_else_of_it() {
        let bytes = said(2).answer(&asked(Some(4096)), Carriage::Udp).expect("bytes");
        assert_eq!(bytes[..2], [0, 7]);
        assert!(bytes.windows(12).any(|w| w == b"\x03wWw\x07Allowed"), "its case");
        let read = Message::from_vec(&bytes).expect("readable");
        assert_eq!((read.answers.len(), read.queries.len()), (2, 1));
        assert!(read.metadata.recursion_available && !read.metadata.authentic_data);
        assert_eq!(read.edns.expect("edns").max_payload(), DATAGRAM_BYTES_MAX);
        let plain = said(2).answer(&asked(None), Carriage::Udp).expect("bytes");
        assert!(Message::from_vec(&plain).expect("readable").edns.is_none(), "for who doesn't know it");
        assert!(question(&plain).is_err(), "nobody answers an answer");
    }

    #[test]
    fn what_does_not_fit_is_left_out_whole() {
        for (payload, carriage, addresses, fits) in [
            (None, Carriage::Udp, 20, true),
            (None, Carriage::Udp, 40, false),
            (Some(0), Carriage::Udp, 40, false),
            (Some(1232), Carriage::Udp, 60, true),
            (Some(65_535), Carriage::Udp, 80, false),
            (None, Carriage::Tcp, 200, true),
        ] {
            let bytes = said(addresses).answer(&asked(payload), carriage).expect("bytes");
            let read = Message::from_vec(&bytes).expect("readable");
            assert_eq!(read.metadata.truncation, !fits, "{payload:?} {carriage:?} {addresses}");
            assert_eq!(read.answers.len(), if fits { usize::from(addresses) } else { 0 });
            assert!(carriage == Carriage::Tcp || bytes.len() <= 1232);
        }
    }

    #[test]
    fn a_refusal_says_why_to_who_understands_it() {
        let refused = || Said::refused(DropReason::PolicyDenied, "ab-1");
        let bytes = refused().answer(&asked(Some(512)), Carriage::Udp).expect("bytes");
        let read = Message::from_vec(&bytes).expect("readable");
        assert_eq!(read.metadata.response_code, ResponseCode::Refused);
        let edns = read.edns.expect("edns");
        let Some(EdnsOption::Unknown(15, error)) = edns.option(EdnsCode::Unknown(15)) else {
            panic!("{edns:?}");
        };
        assert_eq!(error, b"\x00\x0fpolicy_denied; request ab-1");
        assert!(refused().answer(&asked(None), Carriage::Udp).is_some());
        assert_eq!(Said::refused(DropReason::ResolveFailed, "x").code, ResponseCode::ServFail);
        let bare = Message::from_vec(&bare(9, 0, ResponseCode::BADVERS).expect("bytes")).expect("readable");
        assert_eq!((bare.metadata.id, bare.edns.expect("edns").rcode_high()), (9, 1));
    }
}
