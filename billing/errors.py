"""What can go wrong with money. Facts are attributes; nobody parses a message."""


class BillingError(Exception):
    """A request can not be paid for, or the proof that it was can not be kept."""


class InsufficientFunds(BillingError):
    """The account, or a budget over it, does not cover the amount."""

    def __init__(self, account: str, wanted_pusd: int, available_pusd: int) -> None:
        super().__init__(f"{account}: {wanted_pusd} pUSD wanted, {available_pusd} pUSD available")
        self.account = account
        self.wanted_pusd = wanted_pusd
        self.available_pusd = available_pusd


class UnknownPrice(BillingError):
    """No price is known, so nothing may be sold: `meter` is None when the whole model is unpriced."""

    def __init__(self, what: str, meter: str | None = None) -> None:
        super().__init__(f"no price for {what}" if meter is None else f"no price for {meter} of {what}")
        self.what = what
        self.meter = meter


class HoldExpired(BillingError):
    """The reservation ran out before it was settled; its lease has been given to somebody else."""

    def __init__(self, request_id: str) -> None:
        super().__init__(f"the hold of request {request_id} has expired")
        self.request_id = request_id


class JournalUnavailable(BillingError):
    """The usage journal takes no records (disk full, I/O error, closed).

    From `Journal.intent`: the request has not been admitted and must be refused. From `Journal.settle`: the record is
    kept in memory and written as soon as the disk takes it; until then it is not on stable storage.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(f"usage journal unavailable: {reason}")
        self.reason = reason


class LedgerConflict(BillingError):
    """A transfer id was posted before with other accounts or another amount."""

    def __init__(self, transfer_id: str) -> None:
        super().__init__(f"transfer {transfer_id} exists with other accounts or another amount")
        self.transfer_id = transfer_id
