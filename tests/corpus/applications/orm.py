"""A shop's back office in SQLAlchemy 2: ``python orm.py URL``.  Ordinary code; what it sends is captured."""

import datetime as dt
import decimal
import sys
import uuid

from sqlalchemy import (
    CHAR, BigInteger, Date, DateTime, Enum, ForeignKey, Identity, MetaData, Numeric, SmallInteger, Text,
    and_, bindparam, case, cast, delete, distinct, exists, extract, func, insert, inspect, literal, not_, or_, select,
    text, true, tuple_, union, union_all, update,
)  # fmt: skip
from sqlalchemy import create_engine
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, UUID
from sqlalchemy.dialects.postgresql import insert as pg_insert
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import (
    DeclarativeBase, Mapped, Session, aliased, contains_eager, joinedload, load_only, mapped_column, relationship,
    selectinload, subqueryload,
)  # fmt: skip


class Base(DeclarativeBase):
    pass


class Country(Base):
    __tablename__ = "countries"
    code: Mapped[str] = mapped_column(CHAR(2), primary_key=True)
    name: Mapped[str] = mapped_column(Text)


class Customer(Base):
    __tablename__ = "customers"
    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    name: Mapped[str]
    email: Mapped[str]
    country: Mapped[str] = mapped_column(ForeignKey("countries.code"))
    joined: Mapped[dt.date] = mapped_column(Date)
    active: Mapped[bool] = mapped_column(default=True)
    notes: Mapped[str | None] = mapped_column(Text)
    addresses: Mapped[list["Address"]] = relationship(back_populates="customer", cascade="all, delete-orphan")
    orders: Mapped[list["Order"]] = relationship(back_populates="customer")


class Address(Base):
    __tablename__ = "addresses"
    id: Mapped[int] = mapped_column(primary_key=True)
    customer_id: Mapped[int] = mapped_column(ForeignKey("customers.id"))
    street: Mapped[str] = mapped_column(Text)
    city: Mapped[str] = mapped_column(Text)
    postcode: Mapped[str | None]
    customer: Mapped[Customer] = relationship(back_populates="addresses")


class Product(Base):
    __tablename__ = "products"
    id: Mapped[int] = mapped_column(primary_key=True)
    sku: Mapped[str]
    title: Mapped[str] = mapped_column(Text)
    price: Mapped[decimal.Decimal] = mapped_column(Numeric(10, 2))
    stock: Mapped[int]
    tags: Mapped[list[str]] = mapped_column(ARRAY(Text))
    attributes: Mapped[dict] = mapped_column(JSONB)


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    customer_id: Mapped[int] = mapped_column(ForeignKey("customers.id"))
    placed: Mapped[dt.datetime] = mapped_column(DateTime(timezone=True))
    state: Mapped[str] = mapped_column(Enum("new", "paid", "sent", "returned", name="order_state"))
    total: Mapped[decimal.Decimal] = mapped_column(Numeric(12, 2))
    reference: Mapped[uuid.UUID | None] = mapped_column(UUID(as_uuid=True))
    customer: Mapped[Customer] = relationship(back_populates="orders")
    lines: Mapped[list["Line"]] = relationship(back_populates="order", cascade="all, delete-orphan")


class Line(Base):
    __tablename__ = "order_lines"
    order_id: Mapped[int] = mapped_column(ForeignKey("orders.id"), primary_key=True)
    product_id: Mapped[int] = mapped_column(ForeignKey("products.id"), primary_key=True)
    quantity: Mapped[int] = mapped_column(SmallInteger)
    price: Mapped[decimal.Decimal] = mapped_column(Numeric(10, 2))
    order: Mapped[Order] = relationship(back_populates="lines")
    product: Mapped[Product] = relationship()


def browse(session: Session) -> None:
    """What a clerk looks at."""
    session.get(Customer, 7)
    session.scalars(select(Customer).order_by(Customer.name).limit(10)).all()
    session.scalars(select(Customer).order_by(Customer.id).offset(20).limit(10)).all()
    session.scalars(select(Customer).where(Customer.email == "c3@example.org")).one()
    session.scalars(select(Customer).where(Customer.name.like("Customer 1%")).order_by(Customer.id)).all()
    session.scalars(select(Customer).where(Customer.name.ilike("%MER 2%")).order_by(Customer.id)).all()
    session.scalars(select(Customer).where(Customer.name.startswith("Customer")).order_by(Customer.id).limit(3)).all()
    session.scalars(select(Customer).where(Customer.name.icontains("er 5")).order_by(Customer.id)).all()
    session.scalars(select(Customer).where(Customer.id.in_([1, 2, 3])).order_by(Customer.id)).all()
    session.scalars(select(Customer).where(Customer.country.not_in(["BE", "DE"])).order_by(Customer.id)).all()
    session.scalars(select(Customer).where(Customer.notes.is_(None), Customer.active).order_by(Customer.id)).all()
    session.scalars(select(Customer).where(or_(Customer.notes.is_not(None), not_(Customer.active))).order_by(Customer.id)).all()
    session.scalars(select(Customer).where(Customer.joined.between(dt.date(2024, 1, 5), dt.date(2024, 1, 20))).order_by(Customer.joined)).all()
    session.scalars(select(Customer).where(tuple_(Customer.country, Customer.active).in_([("BE", True), ("NL", False)])).order_by(Customer.id)).all()
    session.scalars(select(Customer).options(load_only(Customer.name, Customer.email)).order_by(Customer.id).limit(5)).all()
    session.execute(select(Customer.id, Customer.name.label("who")).order_by(Customer.id).limit(5)).all()
    session.scalars(select(distinct(Customer.country)).order_by(Customer.country)).all()
    session.scalars(select(Customer.country).distinct(Customer.country).order_by(Customer.country, Customer.id)).all()
    session.scalar(select(func.count()).select_from(Customer))
    session.scalar(select(func.count(Customer.notes)))
    session.scalar(select(exists().where(Customer.email == "nobody@example.org")))
    session.scalars(select(Product).where(Product.price > decimal.Decimal("10.00")).order_by(Product.price.desc(), Product.id)).all()
    session.scalars(select(Product).where(Product.tags.any("tag1")).order_by(Product.id)).all()
    session.scalars(select(Product).where(Product.tags.contains(["all", "tag2"])).order_by(Product.id)).all()
    session.scalars(select(Product).where(Product.attributes["colour"].astext == "red").order_by(Product.id)).all()
    session.scalars(select(Product).where(Product.attributes.has_key("weight")).order_by(Product.id).limit(4)).all()
    session.scalars(select(Product).where(Product.attributes.contains({"colour": "blue"})).order_by(Product.id)).all()
    session.execute(select(Product.sku, cast(Product.price, Text)).order_by(Product.id).limit(3)).all()
    session.execute(select(Product.id, (Product.price * Product.stock).label("value")).order_by(text("value DESC"), Product.id).limit(5)).all()
    session.execute(select(func.coalesce(Customer.notes, "none"), func.lower(Customer.name), func.length(Customer.email)).order_by(Customer.id).limit(5)).all()
    session.execute(select(case((Product.stock == 0, "out"), (Product.stock < 10, "few"), else_="many").label("level"), func.count()).group_by(text("level")).order_by(text("level"))).all()
    session.execute(select(func.upper(Customer.country), func.min(Customer.joined), func.max(Customer.joined)).group_by(func.upper(Customer.country)).order_by(func.upper(Customer.country))).all()


def report(session: Session) -> None:
    """Joins, aggregates, windows and common table expressions."""
    session.scalars(select(Order).options(joinedload(Order.customer)).order_by(Order.id).limit(5)).all()
    session.scalars(select(Order).options(joinedload(Order.lines).joinedload(Line.product)).where(Order.id < 4).order_by(Order.id)).unique().all()
    session.scalars(select(Order).options(selectinload(Order.lines)).order_by(Order.id).limit(5)).all()
    session.scalars(select(Customer).options(selectinload(Customer.orders).selectinload(Order.lines), selectinload(Customer.addresses)).where(Customer.id.in_([4, 5])).order_by(Customer.id)).all()
    session.scalars(select(Customer).options(subqueryload(Customer.addresses)).order_by(Customer.id).limit(5)).all()
    session.scalars(select(Order).join(Order.customer).options(contains_eager(Order.customer)).where(Customer.country == "BE").order_by(Order.id)).all()
    customer = session.get_one(Customer, 9)
    session.expire_all()
    list(customer.orders)
    list(customer.addresses)
    session.execute(select(Customer.name, func.count(Order.id)).join(Order, isouter=True).group_by(Customer.id).order_by(Customer.id).limit(10)).all()
    session.execute(select(Order.state, func.sum(Order.total), func.avg(Order.total)).group_by(Order.state).order_by(Order.state)).all()
    session.execute(select(Customer.country, func.sum(Order.total)).join(Order).group_by(Customer.country).having(func.sum(Order.total) > 100).order_by(Customer.country)).all()
    session.execute(select(extract("month", Order.placed).label("month"), func.count()).group_by(text("month")).order_by(text("month"))).all()
    session.execute(select(func.date_trunc("day", Order.placed).label("day"), func.count()).group_by(text("day")).order_by(text("day")).limit(5)).all()
    session.execute(select(Order.id, func.row_number().over(partition_by=Order.customer_id, order_by=Order.placed)).order_by(Order.id).limit(10)).all()
    session.execute(select(Order.id, func.sum(Order.total).over(order_by=Order.id, rows=(-2, 0))).order_by(Order.id).limit(10)).all()
    session.execute(select(Order.id, func.lag(Order.total).over(partition_by=Order.customer_id, order_by=Order.id)).order_by(Order.id).limit(10)).all()
    spent = select(Order.customer_id, func.sum(Order.total).label("spent")).group_by(Order.customer_id).cte("spent")
    session.execute(select(Customer.name, spent.c.spent).join(spent, spent.c.customer_id == Customer.id).order_by(spent.c.spent.desc(), Customer.id).limit(5)).all()
    last = select(func.max(Order.placed)).where(Order.customer_id == Customer.id).correlate(Customer).scalar_subquery()
    session.execute(select(Customer.id, last).order_by(Customer.id).limit(5)).all()
    session.scalars(select(Customer).where(exists().where(and_(Order.customer_id == Customer.id, Order.state == "returned"))).order_by(Customer.id)).all()
    session.scalars(select(Customer).where(~Customer.orders.any(Order.total > 600)).order_by(Customer.id).limit(5)).all()
    session.scalars(select(Order).where(Order.customer.has(Customer.country == "FR")).order_by(Order.id).limit(5)).all()
    session.scalars(select(Product).where(Product.id.in_(select(Line.product_id).where(Line.quantity > 4))).order_by(Product.id)).all()
    session.execute(union_all(select(Customer.id).where(Customer.country == "BE"), select(Order.id).where(Order.total < 10)).order_by(text("1"))).all()
    session.execute(union(select(Customer.country), select(Country.code)).order_by(text("1"))).all()
    other = aliased(Customer)
    session.execute(select(Customer.id, other.id).join(other, and_(other.country == Customer.country, other.id > Customer.id)).order_by(Customer.id, other.id).limit(5)).all()
    per_order = select(Line.order_id, func.count().label("n")).group_by(Line.order_id).subquery()
    session.execute(select(func.avg(per_order.c.n))).all()
    best = select(Order).where(Order.customer_id == Customer.id).order_by(Order.total.desc()).limit(1).lateral("best")
    session.execute(select(Customer.id, best.c.id).join(best, true()).order_by(Customer.id).limit(5)).all()
    tree = select(literal(1).label("n")).cte("tree", recursive=True)
    tree = tree.union_all(select(tree.c.n + 1).where(tree.c.n < 5))
    session.execute(select(func.sum(tree.c.n))).all()
    session.execute(select(func.string_agg(Customer.name, ", ")).where(Customer.id < 4)).all()
    session.execute(select(func.array_agg(Product.sku)).where(Product.id < 4)).all()
    session.execute(select(func.count().filter(Order.state == "paid"), func.count()).select_from(Order)).all()
    session.execute(text("SELECT id, amount FROM order_totals WHERE state = :state ORDER BY amount DESC, id LIMIT 5"), {"state": "sent"}).all()
    session.execute(text("SELECT now() IS NOT NULL, current_date IS NOT NULL")).all()


def work(session: Session) -> None:
    """Writes."""
    session.add(Customer(name="New One", email="new1@example.org", country="BE", joined=dt.date(2026, 1, 1),
                         addresses=[Address(street="1 New Street", city="Ghent", postcode="9000")]))  # fmt: skip
    session.flush()
    session.add_all([Customer(name=f"Bulk {n}", email=f"bulk{n}@example.org", country="NL", joined=dt.date(2026, 1, n)) for n in (2, 3, 4)])
    session.commit()
    customer = session.scalars(select(Customer).where(Customer.email == "new1@example.org")).one()
    customer.name = "Renamed"
    customer.notes = "it's \"quoted\" \\ and unicode: é"
    session.commit()
    order = Order(customer=customer, placed=dt.datetime(2026, 2, 1, 12, tzinfo=dt.UTC), state="new", total=decimal.Decimal("12.50"),
                  reference=uuid.UUID(int=7), lines=[Line(product_id=1, quantity=2, price=decimal.Decimal("6.25"))])  # fmt: skip
    session.add(order)
    session.commit()
    order.state = "paid"
    session.commit()
    session.refresh(order)
    with session.begin_nested():
        session.add(Address(customer=customer, street="2 New Street", city="Bruges"))
    try:
        with session.begin_nested():
            session.add(Customer(name="Twice", email="c1@example.org", country="BE", joined=dt.date(2026, 1, 1)))
            session.flush()
    except IntegrityError:
        pass
    session.commit()
    session.execute(update(Product).where(Product.stock < 5).values(stock=Product.stock + 10))
    session.execute(update(Product).where(Product.id == 3).values(attributes={"colour": "black"}, tags=["new"]))
    session.execute(update(Customer).where(Customer.id == bindparam("key")).values(notes=bindparam("note")).returning(Customer.id), {"key": 5, "note": "called"})
    session.execute(insert(Product).returning(Product.id), [{"sku": f"NEW-{n}", "title": f"New {n}", "price": n, "stock": 1, "tags": [], "attributes": {}} for n in range(3)])
    session.execute(pg_insert(Country).values(code="LU", name="Luxembourg").on_conflict_do_nothing())
    session.execute(pg_insert(Country).values(code="BE", name="Belgie").on_conflict_do_update(index_elements=["code"], set_={"name": "Belgie"}))
    session.execute(delete(Address).where(Address.city == "Bruges"))
    session.execute(delete(Line).where(Line.order_id.in_(select(Order.id).where(Order.reference == uuid.UUID(int=7)))))
    session.commit()
    session.scalars(select(Order).where(Order.id == order.id).with_for_update()).one()
    session.scalars(select(Product).where(Product.stock > 0).order_by(Product.id).limit(2).with_for_update(skip_locked=True)).all()
    session.rollback()
    session.delete(order)
    session.delete(customer)
    session.commit()


def reflect(engine: object) -> None:
    """Introspection."""
    MetaData().reflect(bind=engine)
    inspector = inspect(engine)
    inspector.get_schema_names()
    inspector.get_view_names()
    for name in inspector.get_table_names():
        inspector.get_columns(name)
        inspector.get_pk_constraint(name)
        inspector.get_foreign_keys(name)
        inspector.get_indexes(name)
        inspector.get_unique_constraints(name)
        inspector.get_check_constraints(name)
        inspector.get_table_comment(name)
    inspector.get_enums()
    inspector.has_table("orders")


def main(url: str) -> None:
    engine = create_engine(url)
    for each in (browse, report, work):
        with Session(engine) as session:
            each(session)
    with engine.connect() as connection:
        reflect(connection)
    engine.dispose()


main(sys.argv[1])
