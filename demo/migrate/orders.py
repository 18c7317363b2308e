"""A shop's orders, kept in TinyDB. Everything below ``main`` is sync."""

from __future__ import annotations

import asyncio
import sys

from storage import AwaitingStorage
from tinydb import TinyDB, where

import greenback


def place(db, customer, item):
    orders = db.table("orders")
    orders.clear_cache()
    number = orders.insert({"customer": customer, "item": item, "paid": False})
    return confirm(orders, number)


def confirm(orders, number):
    order = orders.get(doc_id=number)
    return f"order {number}: {order['item']} for {order['customer']}"


def pay(db, customer):
    db.table("orders").update({"paid": True}, where("customer") == customer)


def owed(db, customer):
    open_orders = (where("customer") == customer) & (where("paid") == False)  # noqa: E712
    orders = db.table("orders")
    orders.clear_cache()
    return len(orders.search(open_orders))


def how_many(db):
    return len(db.table("orders"))


async def main(path):
    await greenback.ensure_portal()
    db = TinyDB(path, storage=AwaitingStorage)
    for number in range(60):
        place(db, f"customer {number % 4}", "tea")
        if number % 3 == 0:
            owed(db, f"customer {number % 4}")
        if number % 10 == 0:
            pay(db, f"customer {number % 4}")
        if number % 5 == 0:
            how_many(db)
    return how_many(db), [owed(db, f"customer {each}") for each in range(4)]


if __name__ == "__main__":
    print(*asyncio.run(main(sys.argv[1])))
