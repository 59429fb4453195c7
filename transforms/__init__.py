"""What happens to a batch: plan, read, route, call, embed, price, write, commit, settle.

Plain functions on Arrow tables and small values; the Beam wiring is in `transforms.wiring` alone.
"""
