//! What operators say about a route while gateways run: how long it may take, that it is deprecated
//! (RFC 9745), and when it ends (RFC 8594).

use std::time::Duration;

use contracts::problem::{Code, Problem};
use http::{HeaderMap, HeaderName, HeaderValue};
use jiff::Timestamp;

const DEPRECATION: HeaderName = HeaderName::from_static("deprecation");
const SUNSET: HeaderName = HeaderName::from_static("sunset");

/// What is said about one route.
#[derive(Debug)]
pub struct Rule {
    /// How long its upstream may take, if not as long as others.
    pub timeout: Option<Duration>,
    deprecation: Option<HeaderValue>,
    sunset: Option<HeaderValue>,
    gone_from: Option<Timestamp>,
}

impl Rule {
    /// A rule as it stands in the database. `served_after` says that the route outlives its end.
    #[must_use]
    pub fn new(
        timeout: Option<Duration>,
        deprecated_at: Option<Timestamp>,
        sunset_at: Option<Timestamp>,
        served_after: bool,
    ) -> Self {
        let value = |text: String| HeaderValue::try_from(text).ok();
        // A structured-field date is the second, with an @ before it.
        let deprecation = deprecated_at.and_then(|at| value(format!("@{}", at.as_second())));
        let http_date = |at: Timestamp| at.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string();
        Self {
            timeout,
            deprecation,
            sunset: sunset_at.and_then(|at| value(http_date(at))),
            gone_from: sunset_at.filter(|_| !served_after),
        }
    }

    /// Whether the route is still served.
    ///
    /// # Errors
    /// The problem that says that it has ended.
    pub fn check(&self, now: Timestamp) -> Result<(), Problem> {
        match self.gone_from {
            Some(end) if end <= now => {
                let detail = format!("This route ended at {end}.");
                Err(Problem::new(Code::Gone, detail))
            }
            _ => Ok(()),
        }
    }

    /// Says it on an answer.
    pub fn announce(&self, headers: &mut HeaderMap) {
        if let Some(value) = &self.deprecation {
            headers.insert(DEPRECATION, value.clone());
        }
        if let Some(value) = &self.sunset {
            headers.insert(SUNSET, value.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_written_as_their_headers_want_them_and_the_end_is_the_end() {
        let deprecated = Timestamp::from_second(1_688_169_599).unwrap();
        let sunset: Timestamp = "2018-12-31T23:59:59Z".parse().unwrap();
        let rule = Rule::new(None, Some(deprecated), Some(sunset), false);
        let mut headers = HeaderMap::new();
        rule.announce(&mut headers);
        assert_eq!(headers["deprecation"], "@1688169599");
        assert_eq!(headers["sunset"], "Mon, 31 Dec 2018 23:59:59 GMT");
        let second = jiff::SignedDuration::from_secs(1);
        assert!(rule.check(sunset - second).is_ok());
        assert_eq!(rule.check(sunset).unwrap_err().status().as_u16(), 410);
        let served = Rule::new(None, None, Some(sunset), true);
        assert!(served.check(deprecated + second * 1_000_000_000).is_ok());
    }
}
