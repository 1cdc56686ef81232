//! What an answer to bad input has to be, and the rows that show whether it was.

use contracts::{api::jobs::SUBMIT_MAX_BYTES, problem::Code};
use serde::Serialize;

use crate::{report, request::Answer};

/// Longest part of an answer that is shown.
const SHOWN_CHARS: usize = 70;

/// One case: what was sent, what had to come, what came.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Row {
    /// What was sent.
    pub(crate) case: &'static str,
    /// The status that had to come.
    pub(crate) expected: u16,
    /// The status that came.
    pub(crate) status: Option<u16>,
    /// The problem's code.
    pub(crate) code: Option<Code>,
    /// What else tells: the pointer, the detail, the headers.
    pub(crate) shown: String,
    /// Whether it is as promised.
    pub(crate) ok: bool,
}

/// An answer, or why there is none.
pub(super) type Sent = Result<Answer, String>;

/// What has to come.
pub(super) struct Expected {
    status: u16,
    code: Option<Code>,
    pointer: Option<&'static str>,
    headers: Vec<&'static str>,
    max_size: bool,
}

impl Expected {
    /// An answer with this status.
    pub(super) fn status(status: u16) -> Self {
        Self {
            status,
            code: None,
            pointer: None,
            headers: Vec::new(),
            max_size: false,
        }
    }

    /// A problem with this status and code.
    pub(super) fn code(status: u16, code: Code) -> Self {
        Self {
            code: Some(code),
            ..Self::status(status)
        }
    }

    /// … that names this member.
    pub(super) fn pointer(self, pointer: &'static str) -> Self {
        Self {
            pointer: Some(pointer),
            ..self
        }
    }

    /// … with this header.
    pub(super) fn header(mut self, name: &'static str) -> Self {
        self.headers.push(name);
        self
    }

    /// … that tells the largest size.
    pub(super) fn max_size(self) -> Self {
        Self {
            max_size: true,
            ..self
        }
    }

    /// Whether `sent` is that.
    pub(super) fn row(&self, case: &'static str, sent: &Sent) -> Row {
        let row = Row {
            case,
            expected: self.status,
            status: None,
            code: None,
            shown: String::new(),
            ok: false,
        };
        let answer = match sent {
            Ok(answer) => answer,
            Err(error) => {
                return Row {
                    shown: error.clone(),
                    ..row
                };
            }
        };
        let problem = answer.problem();
        let code = problem.as_ref().map(|problem| problem.code);
        let pointers: Vec<_> = problem
            .iter()
            .flat_map(|p| &p.errors)
            .map(|error| error.pointer.as_str())
            .collect();
        let headers: Vec<_> = self
            .headers
            .iter()
            .map(|name| format!("{name}: {}", answer.header(name).unwrap_or("MISSING")))
            .collect();
        let mut shown = headers.clone();
        shown.extend(pointers.iter().map(|pointer| format!("at {pointer}")));
        shown.extend(problem.as_ref().and_then(|problem| problem.detail.clone()));
        let size = problem.as_ref().and_then(|problem| problem.max_size);
        let refused = self.status >= 400;
        let ok = answer.status == self.status
            && (self.code.is_none() || code == self.code)
            && problem.is_some() == refused
            && problem
                .as_ref()
                .is_none_or(|problem| problem.request_id.is_some())
            && self
                .pointer
                .is_none_or(|pointer| pointers.contains(&pointer))
            && self
                .headers
                .iter()
                .all(|name| answer.header(name).is_some())
            && (!self.max_size || size == Some(SUBMIT_MAX_BYTES as u64));
        Row {
            status: Some(answer.status),
            code,
            shown: shown.join("; "),
            ok,
            ..row
        }
    }
}

/// Prints the rows; an error if one is not as promised.
pub(crate) fn show(rows: &[Row]) {
    report::heading("Bad input, and the answers");
    report::table(
        ["sent", "expected", "got", "code", "shown", "ok"],
        rows.iter().map(|row| {
            [
                row.case.to_owned(),
                row.expected.to_string(),
                row.status
                    .map_or_else(|| "none".to_owned(), |status| status.to_string()),
                row.code.map_or("", Code::as_str).to_owned(),
                shorten(&row.shown),
                if row.ok { "yes" } else { "NO" }.to_owned(),
            ]
        }),
    );
}

/// The problem's detail may be long; the JSON has all of it.
fn shorten(text: &str) -> String {
    if text.chars().count() <= SHOWN_CHARS * 3 {
        return text.to_owned();
    }
    text.chars().take(SHOWN_CHARS * 3).chain(['…']).collect()
}
